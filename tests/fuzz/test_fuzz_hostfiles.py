"""Hostfiles that are valid or wrong by construction."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from hyena_ds.errors import UserError
from hyena_ds.runtime.hostfile import read_hostfile
from tests.fuzz import harness
from tests.fuzz.harness import bounded, check_sentence, fuzzed

_NAMES = st.from_regex(r"([a-z]{1,8}@)?[a-zA-Z0-9][a-zA-Z0-9.-]{0,30}", fullmatch=True)
_HOSTS = st.lists(st.tuples(_NAMES, st.integers(1, 64)), min_size=1, max_size=20, unique_by=lambda host: host[0])
_IDLE = st.sampled_from(["", "   ", "# a comment", "#node9 slots=8"])
_END = st.sampled_from(["\n", "\r\n", "  \n", "  # eight GPUs\n"])
_WRONG = st.one_of(
    st.sampled_from(
        [
            *("node0", "node0 slots", "node0 slots=", "node0 slots=0", "node0 slots=-1", "node0 slots=1.5", "slots=8"),
            *(
                "node0 slots=²",
                "node0 slots=१",
                "node0 slots=" + "9" * 400,
                "node0 slots=10000000000",
                "node0 slots=8 x",
            ),
            *(
                "-oProxyCommand=true slots=1",
                "no\x00de slots=1",
                "no\x1bde slots=1",
                "node0;true slots=1",
                "$(true) slots=1",
            ),
            "x" * 5000 + " slots=1",
        ]
    ),
    st.binary(min_size=1, max_size=20).map(lambda data: "\udcff" + data.decode("latin-1").replace("\n", "")),
)


@fuzzed(_HOSTS, st.lists(st.tuples(st.integers(0, 20), _IDLE), max_size=4), _END)
def test_a_hostfile_is_read_as_it_is(
    tmp_path: Path, hosts: list[tuple[str, int]], idle: list[tuple[int, str]], end: str
) -> None:
    lines = [f"{name} slots={slots}" for name, slots in hosts]
    for at, line in idle:
        lines.insert(at, line)
    file = tmp_path / "hostfile"
    file.write_bytes("".join(line + end for line in lines).encode())
    harness.counted += 1
    with bounded():
        found = read_hostfile(file)
    assert [(host.name, host.slots) for host in found] == hosts


@fuzzed(_HOSTS, _WRONG, st.integers(0, 20))
def test_a_wrong_line_is_refused(tmp_path: Path, hosts: list[tuple[str, int]], wrong: str, at: int) -> None:
    lines = [f"{name} slots={slots}" for name, slots in hosts]
    lines.insert(at, wrong)
    file = tmp_path / "hostfile"
    file.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    harness.counted += 1
    with bounded(), pytest.raises(UserError) as raised:
        read_hostfile(file)
    check_sentence(f"error: {raised.value}")
