"""`hyena-ds doctor HOSTFILE` finds nothing on hosts that are well, and every fault that is planted on those that are not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hyena_ds.data.shards import read_index
from tests.cluster.hosts import Host, Hosts
from tests.cluster.launches import left, write_run
from tests.training.runs import make_shards

TIMEOUT = 300


def doctor(host: Host, *arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the verdicts of `hyena-ds doctor`, typed on a host."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Versions that are planted must not be compiled into the environment that all hosts share.
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "hyena_ds", "doctor", "--json", "--seconds", "120", *arguments]
    process = host.start(command, own)
    try:
        output = process.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"no end in {TIMEOUT} s: {process.communicate()[0]}") from None
    assert "{" in output and "Traceback" not in output, output
    found = json.loads(output[output.index("{") :])
    assert found["ok"] == (process.returncode == 0), output
    return process.returncode, found["verdicts"]


def test_hosts_that_are_well_pass_every_check(hosts_of: Callable[[int], Hosts], tmp_path: Path) -> None:
    hosts = hosts_of(2)
    config = write_run(tmp_path, make_shards(tmp_path))
    (tmp_path / "runs").mkdir()
    code, verdicts = doctor(hosts[0], hosts.hostfile(1), "--config", config)
    assert code == 0, verdicts
    found = {(verdict["check"], verdict["where"]) for verdict in verdicts}
    everywhere = {(check, "all 2 hosts") for check in ("versions", "clock", "shards")}
    each = {(check, f"node{n}") for check in ("devices", "run directory") for n in range(2)}
    together = {("ranks", "all"), ("exchange", "node0 - node1"), ("parity", "sp 1 and 2")}
    assert found == everywhere | each | together
    assert list((tmp_path / "runs").iterdir()) == []
    assert not left(*hosts.hosts)


def test_a_slow_link_is_named_with_its_rate_and_its_delay(hosts_of: Callable[[int], Hosts]) -> None:
    hosts = hosts_of(2)
    print(f"the slow link: {hosts.slow(hosts[1], 100, 20)}")
    code, verdicts = doctor(hosts[0], hosts.hostfile(1))
    assert code == 1
    (link,) = (each for each in verdicts if each["level"] == "wrong")
    print(link["found"])
    assert (link["check"], link["where"]) == ("exchange", "node0 - node1")
    found = re.search(
        r": (\S+) GB/s a rank .* (\S+) ms for a number; values right; a slow link; a long delay$", link["found"]
    )
    assert found, link
    rate, delay = map(float, found.groups())
    assert rate < 0.013 and 20 < delay < 200  # 100 Mbit/s are 0.0125 GB/s
    assert "what lies between the hosts" in link["to_do"]
    assert not left(*hosts.hosts)


def test_every_planted_fault_is_found_and_named(hosts_of: Callable[[int], Hosts], tmp_path: Path) -> None:
    hosts = hosts_of(4)
    shards = make_shards(tmp_path)
    config = write_run(tmp_path, shards)
    (tmp_path / "runs").mkdir()
    version = Path(torch.__file__).with_name("version.py")
    old = tmp_path / "version.py"
    old.write_text(version.read_text().replace(torch.__version__, "2.1.0+old"))
    hosts[1].mount(old, version)
    damaged = Path(shutil.copytree(shards, tmp_path / "damaged"))
    shard = damaged / read_index(damaged).shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    hosts[1].mount(damaged, shards)
    hosts[2].small_disk(tmp_path / "runs", 512)
    print(f"the slow link: {hosts.slow(hosts[2], 10, 5)}")
    hosts.cut(hosts[3])
    code, verdicts = doctor(hosts[0], hosts.hostfile(1), "--config", config)
    assert code == 1
    wrong = {(each["check"], each["where"]): each["found"] for each in verdicts if each["level"] == "wrong"}
    assert "cannot be looked at: ssh: connect to host node3" in wrong.pop(("host", "node3"))
    assert "torch 2.1.0+old (" in wrong.pop(("versions", "node1"))
    assert f"{shards}/{shard.name}: the bytes do not match the SHA-256" in wrong.pop(("shards", "node1"))
    (disk,) = (each for each in verdicts if each["where"] == "node2" and "KiB free" in each["found"])
    assert disk["level"] == "wrong" and "the disk is full" in disk["to_do"]
    unshared = {where for check, where in wrong if check == "run directory"}
    assert unshared == {"node0", "node1", "node2"}  # node2's own disk is nobody else's
    for where in unshared:
        del wrong["run directory", where]
    slow = {where for check, where in wrong if check == "exchange"}
    assert slow == {"node0 - node2", "node1 - node2"} and "a slow link" in wrong["exchange", "node0 - node2"]
    assert wrong.keys() == {("exchange", where) for where in slow}
    found = {(each["check"], each["where"]): each["level"] for each in verdicts if each["level"] != "wrong"}
    assert found["exchange", "node0 - node1"] == found["exchange", "all 3 ranks"] == "ok"
    assert found["parity", "sp 1 and 2"] == "warning"  # three ranks cannot be cut in pairs
    assert not left(*hosts.hosts[:3])
