"""What `launch/hostfile.sh` says of a hostfile, and what the hosts' shells make of the arguments and settings that it hands on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from hyena_ds.errors import UserError
from hyena_ds.runtime.hostfile import Host, address_of, environment_file, launch_command, quoted, read_hostfile
from tests.paths import ROOT

TEXTS = [
    "plain",
    "a=b",
    "two words",
    'say "hi" there',
    '"',
    "it's",
    "$HOME",
    "the $HOME",
    "`id`",
    "a `id`",
    "\\",
    "a \\ b",
]
TEXTS += ['\\"', 'x \\" y', "[1,{a: 2},{b: *}]", "{a,b}", "~", "a;b", "a & b", "(c)", "#", "a|b>c", "tab\there", "!"]


def _expanded_by_pdsh(text: str) -> str:
    """As the manual has it: %h, %u and %n stand for something, %% for a percent sign."""
    return text.replace("%%", "\0").replace("%h", "HOST").replace("%u", "USER").replace("%n", "0").replace("\0", "%")


def test_arguments_and_settings_come_to_a_host_as_they_were_typed(tmp_path: Path) -> None:
    texts = [*TEXTS, *(f"{text}%h 100%" for text in TEXTS), *(f"{text}%%n" for text in TEXTS)]
    settings = {f"NCCL_{number}": text for number, text in enumerate(texts)}
    given = argparse.Namespace(user_script="show", user_args=[quoted(text) for text in texts])
    runner = PDSHRunner(given, "")
    for line in environment_file(settings).splitlines():
        name, _, value = line.partition("=")
        runner.add_export(name, value)
    exports = "".join(f"export {name}={value}; " for name, value in runner.exports.items())
    command = _expanded_by_pdsh(f"{exports}show {' '.join(runner.user_arguments)}")
    show = 'show() { printf "%s\\0" "$@"; }; '
    tell = "; for name in " + " ".join(settings) + '; do printf "%s\\0" "${!name}"; done'
    done = subprocess.run(
        ["bash", "-c", show + command + tell], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = done.stdout.split("\0")
    assert found[: len(texts)] == texts
    assert found[len(texts) : -1] == [text.strip() for text in texts]


def test_libraries_variables_and_named_ones_are_handed_on() -> None:
    environment = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3", "EDITOR": "ed", "MINE": "", "FORWARD": "MINE ABSENT"}
    lines = environment_file(environment).splitlines()
    assert lines == ["MINE=", "NCCL_DEBUG=INFO", "OMP_NUM_THREADS=3", "HYENA_RELAY_PID=$PPID"]
    with pytest.raises(UserError, match="MINE: found a value of several lines, wanted one line"):
        environment_file({"FORWARD": "MINE", "MINE": "a\nb"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node0 slots=2\nnode1\n", r":2: found 'node1', wanted a host and its processes, as: node0 slots=8"),
        ("node0 slots=0", r":1: found 'node0 slots=0', wanted a host and its processes"),
        ("node0 slots=2\n\nnode0 slots=2", r":3: found node0 a second time; give each host one line"),
        ("# nothing\n", r"hosts: found no host, wanted at least one line like: node0 slots=8"),
    ],
)
def test_a_wrong_line_of_a_hostfile_is_named(text: str, said: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(text)
    with pytest.raises(UserError, match=said):
        read_hostfile(hosts)
    with pytest.raises(UserError, match="absent: cannot read the hostfile"):
        read_hostfile(tmp_path / "absent")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "-oProxyCommand=touch\tpwned slots=1",
            "-oProxyCommand=x slots=1",
            "me@-oProxyCommand=x slots=1",
            "-l slots=1",
        ),
        *(
            "$(id) slots=1",
            "`id` slots=1",
            "a;b slots=1",
            "a,b slots=1",
            "node[0-3] slots=1",
            "a|b slots=1",
            "a/b slots=1",
        ),
        *(
            "node0 slots=1000000000000",
            "node0 slots=1025",
            "node0 slots=٣",
            "node0 slots=²",
            "node0 slots=-1",
            "node0 slots=1.0",
        ),
        *(
            "node0 slots=1_0",
            "node0 slots=" + "9" * 5000,
            "node0 slot=1",
            "node0 slots = 1",
            "node0 SLOTS=1",
            "node0 slots=1 2",
        ),
        *(
            "\ufeffnode0 slots=1",
            "no\0de slots=1",
            "no\x1b[2Jde slots=1",
            "node0\u2028slots=1",
            "node0\x0cslots=1",
            "größe slots=1",
        ),
        *("@host slots=1", "me@ slots=1", "a@b@c slots=1", "x" * 100_000),
    ],
    ids=lambda line: line[:24].encode("unicode_escape").decode(),
)
def test_a_line_that_would_be_an_option_a_command_or_a_million_processes_is_refused(line: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"first slots=1\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"hosts:2: found ") as caught:
        read_hostfile(hosts)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000


def test_a_hostfile_that_is_no_small_text_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "large").write_bytes(b"#\n" * 5_000_000)
    for name, said in (
        ("pipe", "found a pipe, a directory or a device for the hostfile"),
        ("binary", "found bytes that are not UTF-8, wanted lines like: node0 slots=8"),
        ("large", "found more than 262,144 bytes for the hostfile"),
        (".", "cannot read the hostfile"),
    ):
        with pytest.raises(UserError, match=said):
            read_hostfile(tmp_path / name)


def test_names_and_addresses_that_ssh_knows_are_hosts(tmp_path: Path) -> None:
    names = ["a.example", "10.0.0.1", "me@10.0.0.1", "fe80::1%eth0", "::1", "node_1-b", "first.last@h"]
    hosts = tmp_path / "hosts"
    hosts.write_bytes("".join(f"\t{name}\tslots=1024 # größe\r\n" for name in names).encode())
    assert read_hostfile(hosts) == tuple(Host(name, 1024) for name in names)


def test_hosts_keep_the_order_of_the_hostfile(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# all\nnode1 slots=2  # the first\n\nme@node0   slots=1\n")
    assert read_hostfile(hosts) == (Host("node1", 2), Host("me@node0", 1))


def test_without_ssh_a_host_must_know_its_place_and_the_first_host_s_address() -> None:
    hosts, path = [Host("localhost", 2), Host("node1", 2)], Path("hosts")
    assert address_of(hosts[0]) is None and address_of(Host("me@192.0.2.7", 1)) == "192.0.2.7"
    with pytest.raises(UserError, match="NODE_RANK: found '2', wanted this host's place in hosts, 0 to 1"):
        launch_command(path, hosts, ["x"], {"NODE_RANK": "2", "MASTER_ADDR": "192.0.2.7"}, ssh=False)
    with pytest.raises(UserError, match="MASTER_ADDR: not set, and localhost, the first host, has no address here"):
        launch_command(path, hosts, ["x"], {"NODE_RANK": "1"}, ssh=False)


def test_a_mistake_is_one_sentence_before_any_host_is_asked(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=3\n")
    command = ["bash", "launch/hostfile.sh", str(hosts), "configs/quickstart.yaml"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(
        "hyena-ds: error: stages.0.global_batch: found 16 sequences, wanted a multiple of 3"
    ), done.stderr
    done = subprocess.run(command[:3], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("usage: bash launch/hostfile.sh HOSTFILE CONFIG")
