"""A host is lost in the middle of a step: all ranks end within the bound and say why, and the other host goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from hyena_ds.runtime.heartbeat import FAULT_CODE
from tests.cluster.hosts import Hosts
from tests.cluster.launches import (
    SILENCE,
    STEPS,
    Launch,
    Reference,
    are_equal,
    faults,
    left,
    losses,
    write_run,
)

BOUND = 2 * SILENCE + 25
"""The silence, once more until ssh gives the host up, and what launchers take to end on a busy machine."""


def test_a_cut_link_ends_the_run_within_the_bound_and_one_host_goes_on_from_the_checkpoint(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(2)
    config, run = write_run(tmp_path, single.shards), tmp_path / "runs" / "run"
    launch = Launch(hosts[0], hosts.hostfile(2), config)
    launch.reach(run, 7)
    hosts.cut(hosts[1])
    began = time.monotonic()
    code, output = launch.end()
    assert time.monotonic() - began < BOUND, output
    assert code == FAULT_CODE, output
    last = output.splitlines()[-1]
    assert re.match(r"hyena-ds: error: the run has ended: rank [23] on node1 \(process \d+, last heard of in ", last), (
        output
    )
    assert last.endswith("its host is dead, its link is cut, or its process has stopped")
    assert "pdsh@node0: node1: ssh exited with exit code 255" in output  # nothing had to end ssh
    assert {fault["kind"] for fault in faults(run)} == {"silent"}
    assert not left(*hosts.hosts)  # of the host that nobody can reach any more, too
    assert len(losses(run)) < STEPS
    resumed = Launch(hosts[0], hosts.hostfile(2, 0), config)
    code, output = resumed.end()
    assert code == 0, output
    assert are_equal(losses(run), single.losses)


def test_a_killed_host_is_named_and_the_other_goes_on_from_the_checkpoint(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(3)
    first, second, login = hosts.hosts
    config, run = write_run(tmp_path, single.shards), tmp_path / "runs" / "run"
    launch = Launch(login, hosts.hostfile(2, 0, 1), config)
    launch.reach(run, 7)
    hosts.kill(first)
    began = time.monotonic()
    code, output = launch.end()
    assert time.monotonic() - began < BOUND, output
    assert code == FAULT_CODE, output
    last = output.splitlines()[-1]
    assert last.startswith("hyena-ds: error: the run has ended: rank 0 on node0 (process "), output
    assert "has been silent for" in last and "seen by rank 2 in " in last
    assert not left(second, login)
    assert len(losses(run)) < STEPS
    code, output = Launch(login, hosts.hostfile(2, 1), config).end()
    assert code == 0, output
    assert "node1: resuming after step" in output  # where the hostfile says, not where it is typed
    assert are_equal(losses(run), single.losses)


def test_a_stopped_rank_alone_on_its_host_is_named_and_does_not_remain(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(2)
    config, run = write_run(tmp_path, single.shards), tmp_path / "runs" / "run"
    launch = Launch(hosts[0], hosts.hostfile(1), config)
    launch.reach(run, 4)
    (stopped,) = [process for process in hosts[1].processes("hyena_ds train") if "LOCAL_RANK" in process.environ()]
    stopped.suspend()
    began = time.monotonic()
    code, output = launch.end()
    assert time.monotonic() - began < BOUND + SILENCE, output
    assert code == FAULT_CODE, output
    assert output.splitlines()[-1].startswith("hyena-ds: error: the run has ended: rank 1 on node1 (process "), output
    assert not left(*hosts.hosts)
