"""Where the sockets of a run listen: loopback for ranks of one machine, else no more addresses than ranks come to."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.parallel import listening
from hyena_ds.parallel.listening import LOOPBACK, all_ranks_here, free_port, listen, meeting_address

VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR")


@pytest.mark.parametrize(
    ("variables", "here"),
    [
        ({}, True),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "node0"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "::1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "node0"}, False),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, False),
        ({"WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "10.0.0.1"}, True),  # deepspeed, one host
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0"}, True),  # torchrun, one machine
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0"}, False),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"},
            True,
        ),  # two torchruns on one machine
    ],
)
def test_the_launchers_variables_say_whether_all_ranks_are_here(
    variables: dict[str, str], here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert all_ranks_here() == here
    assert meeting_address() == (LOOPBACK if here else variables["MASTER_ADDR"])


@pytest.mark.parametrize(
    ("address", "known", "listens"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", None, "::1"),
        ("node0", ["127.0.0.2"], "every"),  # others know the name by another address
        ("127.0.0.2", None, "127.0.0.2"),
        ("node0", ["192.0.2.77"], "every"),  # a gateway's
        ("node0", ["127.0.0.2", "127.0.0.3"], "every"),
        ("node0", [], "every"),
    ],
)
def test_where_the_address_is_in_doubt_every_one_is_open_and_else_one(
    address: str, known: list[str] | None, listens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if known is not None:
        find = socket.getaddrinfo

        def found(host: str, *rest: Any, **options: Any) -> Any:
            if host != "node0":
                return find(host, *rest, **options)
            if not known:
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in known]

        monkeypatch.setattr(socket, "getaddrinfo", found)
    with listen(address) as server:
        bound = server.getsockname()[0]
        assert bound == listens or (listens == "every" and bound in ("::", "0.0.0.0"))
        with socket.create_connection(
            (LOOPBACK if listens == "every" else listens, server.getsockname()[1]), timeout=5
        ):
            pass
        with pytest.raises(OSError, match="Address already in use"):
            listen(address, server.getsockname()[1])


def test_a_free_port_is_none_that_the_system_hands_out_to_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_HANDED_OUT", tmp_path / "range")
    (tmp_path / "range").write_text("20000\t60999\n")
    found = {free_port() for _ in range(20)}
    assert len(found) > 1 and all(10_240 <= port < 20_000 for port in found)
    (tmp_path / "range").write_text("10242\t60999\n")  # two are left, both taken: one of the system's
    with listen(LOOPBACK, 10_240), listen(LOOPBACK, 10_241):
        assert free_port() not in (10_240, 10_241)
    for unknown in ("", "1024\t65535\n", "none"):
        (tmp_path / "range").write_text(unknown)
        with listen(LOOPBACK, free_port()):
            pass
