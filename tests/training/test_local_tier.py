"""A run that saves to disks of its hosts' own goes on from them; and from the shared directory where one is lost."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.pool import Pool
from tests.training.local_work import train_on_disks
from tests.training.runs import make_shards, rows, start_ranks, tree, write_config

TIMEOUT = 240.0


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_hosts_disks_or_the_shared_directory_and_is_equal_bit_for_bit(
    ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    local = {"place": str(tmp_path / "disk-$RANK"), "local": True, "every_steps": 3, "keep_last": 2}
    config = write_config(
        tmp_path / "config.yaml",
        make_shards(tmp_path),
        zero_stage=2,
        checkpoint={"every_steps": 100, "background": False, "tiers": [local]},
        watchdog={"enabled": False},
    )
    run, disk, host = tmp_path / "runs" / "run", tmp_path / "disk", socket.gethostname()

    def trained(*overrides: str, **changes: int) -> list[int]:
        answers = ranks(2).run(train_on_disks, timeout=TIMEOUT, config=config, overrides=[*overrides], **changes)
        assert answers[0] == answers[1] and answers[0][0] == 0, answers
        return answers[0][1]

    assert trained() == list(range(1, 11))
    steps = [sorted(path.name for path in (tmp_path / f"disk-{rank}" / "run").glob("step-*")) for rank in range(2)]
    assert steps == [["step-00000006", "step-00000009"]] * 2, "step 3 is older than is kept"
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved == ["step-00000004", "step-00000010"], "the ends of the stages"
    before, final = rows(run), tree(run / "checkpoints" / "step-00000010")
    shutil.rmtree(run)
    # Killed in step 8: the disks have step 6, the directory step 4. Parts of the run before count no more.
    for rank in range(2):
        shutil.rmtree(tmp_path / f"disk-{rank}")
    codes = start_ranks("tests.training.killed_rank", ["train", str(config)], 2, KILL_STEP="7", KILL_RANK="1")
    assert codes[1] == -signal.SIGKILL
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-killed"))
    assert trained() == [7, 8, 9, 10]
    log = (run / "log.txt").read_text()
    assert f"resuming after step 6 from {disk}-0/run/step-00000006, of which each host has a part" in log
    assert rows(run) == before
    assert tree(run / "checkpoints" / "step-00000010").keys() == final.keys()
    # As it was after the kill, but the second host's disk is lost.
    shutil.rmtree(run)
    shutil.copytree(tmp_path.with_name(f"{tmp_path.name}-killed") / "runs" / "run", run)
    shutil.rmtree(tmp_path / "disk-1")
    log = (run / "log.txt").read_text()
    assert trained() == [5, 6, 7, 8, 9, 10]
    said = (run / "log.txt").read_text().removeprefix(log)
    assert (
        f"step 6 of {disk}-0/run is passed over: no host of this run has state-00001-of-00002.safetensors, written on {host}"
        in said
    )
    assert f"resuming after step 4 from {run}/checkpoints/step-00000004" in said
    assert rows(run) == before
    # A bit flips in step 5, after the save of step 4 to the directory: the disks have the newest that nobody doubts.
    steps = trained("name=flipped", "non_finite.roll_backs=1", flipped=5)
    flipped = tmp_path / "runs" / "flipped"
    assert steps == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert "rolled back to step 3" in (flipped / "log.txt").read_text()
    assert rows(flipped) == before
