"""`hyena-ds supervise` on four hosts, of which one waits: two are lost, one after the other, and the run comes to its end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.launches import Launch, are_equal, faults, left, losses, write_run
from tests.training.runs import make_shards, train

STEPS = 16
STAGE = {"context_length": 252, "steps": STEPS, "global_batch": 2, "micro_batch_size": 1}
"""Over three ranks a sequence is cut in three; two cannot do that."""


@pytest.mark.skipif(
    os.environ.get("HYENA_FULL") != "1", reason="takes over a minute: make test-full (HYENA_FULL=1) runs it"
)
def test_a_spare_and_then_a_smaller_grid_carry_a_run_on_that_loses_two_of_four_hosts(
    hosts_of: Callable[[int], Hosts], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    local = {"place": str(disk), "local": True, "every_steps": 1}
    changes: dict[str, Any] = {
        "model": {"width": 24, "layers": 2, "maximum_context": 252, "residual_dropout": 0.1},
        "supervisor": {"spare_hosts": 1},
        "checkpoint": {"every_steps": 8, "background": False, "tiers": [local]},
    }
    shards = make_shards(tmp_path)
    config = write_run(tmp_path, shards, stages=[{**STAGE, "sequence_parallel": 3}], **changes)
    alone = train(config, "name=alone", "local_ranks=1", "stages.0.sequence_parallel=1")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    hosts = hosts_of(4)
    for host in hosts.hosts:
        host.small_disk(disk, 20_000)
    run = tmp_path / "runs" / "run"
    launch = Launch(
        hosts[0],
        config,
        "--",
        "bash",
        "launch/hostfile.sh",
        str(hosts.hostfile(1)),
        str(config),
        script="launch/supervise.sh",
    )
    launch.reach(run, 10)
    hosts.kill(hosts[1])
    launch.reach(run, 13)
    hosts.cut(hosts[3])
    code, output = launch.end()
    assert code == 0, output
    changed = [fault for fault in faults(run) if fault["kind"] == "hosts"]
    first, second = (fault["text"] for fault in changed)
    assert (
        "hosts: without node1 (" in first and "node3 takes its place, now 3 hosts, 3 ranks, the grid as before" in first
    )
    assert (
        "hosts: without node3 (" in second
        and "no spare is left, now 2 hosts, 2 ranks, stage 0 dp 1 x sp 3 -> " in second
    )
    assert "the global batch as before, from the checkpoint of step" in second
    assert first.endswith("from the checkpoint of step 8") and second.endswith("from the checkpoint of step 8")
    log = (run / "log.txt").read_text()
    for lost in ("node1", "node3"):  # whose parts of later steps are on no other disk
        assert re.search(
            rf"step \d+ of {disk}/run is passed over: no host of this run has .*, written on {lost}\n", log
        )
    assert all(f"hyena-ds supervise: {text}" in output for text in (first, second))
    assert (run / "hosts.txt").read_text() == "node0 slots=1\nnode2 slots=1\n"
    assert are_equal(losses(run), losses(tmp_path / "runs" / "alone"))
    assert not left(*(hosts[number] for number in (0, 2, 3)))
