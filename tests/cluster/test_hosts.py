"""The hosts that tests of clusters run on: they reach each other by name, and their links and power can be taken."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.cluster.hosts import Hosts


def _pings(hosts: Hosts, wanted: bool) -> bool:
    """Whether node1 comes to answer node0 as `wanted`, within a few seconds."""
    for _ in range(40):
        probe = "exec 3<>/dev/tcp/node1/22"
        if (hosts[0].start(["timeout", "0.2", "bash", "-c", probe]).wait() == 0) == wanted:
            return True
    return False


def _there_and_back(hosts: Hosts) -> float:
    """Seconds from node0 to node1 and back: the quickest of a few connections."""
    connect = "import socket, timeit; connect = lambda: socket.create_connection(('node1', 22)).close()"
    said = hosts[0].run(sys.executable, "-c", f"{connect}; print(min(timeit.repeat(connect, number=1, repeat=9)))")
    return float(said.stdout)


def test_hosts_are_apart_and_reach_each_other_by_name(hosts_of: Callable[[int], Hosts], tmp_path: Path) -> None:
    hosts = hosts_of(2)
    said = hosts[0].run("pdsh", "-S", "-R", "ssh", "-w", "node0,node1", "hostname; hostname -I").stdout
    assert sorted(said.split("\n")[:-1]) == ["node0: 10.77.0.1 ", "node0: node0", "node1: 10.77.0.2 ", "node1: node1"]
    target = tmp_path / "disk"
    target.mkdir()
    hosts[1].small_disk(target, 64)
    full = ["dd", "if=/dev/zero", f"of={target}/file", "bs=1k", "count=100"]
    assert hosts[1].start(full).wait() != 0
    assert hosts[0].start(full).wait() == 0
    asleep = hosts[1].start(["sleep", "300"])
    while not hosts[1].processes("sleep 300"):
        assert asleep.poll() is None
    assert not hosts[0].processes("sleep 300")


def test_links_and_power_can_be_taken_and_given_back(hosts_of: Callable[[int], Hosts]) -> None:
    hosts = hosts_of(2)
    assert _pings(hosts, True)
    hosts.cut(hosts[1])
    assert _pings(hosts, False)
    hosts.mend(hosts[1])
    assert _pings(hosts, True)
    hosts.slow(hosts[1], 10, 20)
    assert _pings(hosts, True)
    hosts.kill(hosts[1])
    assert _pings(hosts, False)
    hosts.restart(hosts[1])
    assert _pings(hosts, True)


def test_a_slow_link_is_late_and_narrow_until_it_is_mended(hosts_of: Callable[[int], Hosts], tmp_path: Path) -> None:
    hosts = hosts_of(2)
    sent = tmp_path / "sent"
    sent.write_text(random.Random(1).randbytes(500_000).hex())
    late = 2 * 0.02  # what no answer over the late link can be faster than
    assert _there_and_back(hosts) < late
    print(hosts.slow(hosts[1], 8, 1))
    process = hosts[0].start(["timeout", "60", "ssh", "node1", "cat", sent])
    assert process.stdout is not None
    begin = process.stdout.read(1)
    began = time.monotonic()
    assert begin + process.communicate()[0] == sent.read_text()
    assert time.monotonic() - began > 0.8  # 8 megabits, less what came with the first letter
    print(hosts.slow(hosts[1], 100, 20))
    assert _there_and_back(hosts) >= late
    hosts.mend(hosts[1])
    assert _there_and_back(hosts) < late


def test_nothing_remains_of_hosts(tmp_path: Path, hosts_are_possible: None) -> None:
    with Hosts(1, tmp_path / "hosts") as hosts:
        asleep = hosts[0].start(["sleep", "300"])
        while not (inside := hosts[0].processes()):
            assert asleep.poll() is None
    assert asleep.wait(timeout=10) != 0
    assert not psutil.wait_procs(inside, timeout=10)[1]
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert "switch" not in links and "port0" not in links
