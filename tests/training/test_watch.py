"""A slow rank is named and a flipped bit found and undone, in real runs of two ranks; and what a profile leaves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyena_ds.checkpoints.manifest import RunState, read_checkpoint
from hyena_ds.cli import main
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.survival import NonFiniteConfig, WatchdogConfig
from hyena_ds.config.watching import ProfileConfig
from hyena_ds.files.rows import read_faults
from hyena_ds.parallel.devices import Compute
from hyena_ds.runtime.watchdog import Watchdog
from hyena_ds.training.corruption import cannot_mend
from hyena_ds.training.digest import differing
from hyena_ds.training.profile import Profiler
from tests.distributed.pool import Pool
from tests.training.runs import make_shards, rows, write_config
from tests.training.watched_work import digests, train_watched

Ranks = Callable[[int], Pool]
TIMEOUT = 240.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def write(directory: Path, shards: Path, steps: int = 10, **changes: Any) -> Path:
    stages = [{"context_length": 32, "steps": steps, "global_batch": 4, "micro_batch_size": 2}]
    few = {"validation": {"every_steps": 100, "windows": 2}, "watchdog": {"enabled": False}}
    return write_config(directory / "config.yaml", shards, stages=stages, **few, **changes)


@pytest.mark.slow
def test_a_throttled_rank_is_named_within_two_windows_and_a_profile_is_written(
    ranks: Ranks, shards: Path, tmp_path: Path
) -> None:
    config = write(tmp_path, shards, steps=8, stragglers={"every_steps": 2}, profile={"steps": [2, 3]})
    ceiling = {"gemm_float32": 1e9, "gemm_bfloat16": 1e9, "copy": 1e9, "transforms": [[64, 1e9]]}
    (tmp_path / "hyena-ds").mkdir()
    calibration = {"machine": {}, "ceilings": {"2": ceiling}}
    (tmp_path / "hyena-ds" / "calibration.json").write_text(json.dumps(calibration))
    settings: dict[str, Any] = {"config": config, "overrides": [], "flips": {}, "throttled": 1, "cache": str(tmp_path)}
    ended = ranks(2).run(train_watched, timeout=TIMEOUT, **settings)
    assert ended == [(0, ""), (0, "")]
    run = tmp_path / "runs" / "run"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [row for row in lines if "loss" in row]
    shares = [(row["mfu"], row["limit_share"]) for row in steps]
    assert all(0 < mfu == pytest.approx(share) for mfu, share in shares), "all rates are the same here"
    windows = {row["step"]: row for row in steps if "slowest_rank" in row}
    assert list(windows) == [3, 5, 7], "the windows of steps 1 and 2, 3 and 4, 5 and 6 are handed in a step later"
    assert {row["slowest_rank"] for row in windows.values()} == {1}
    assert all(row["slowest_times"] > 1.5 for row in windows.values())
    assert "slow_ranks" not in windows[3] and all("slow_ranks" in windows[step] for step in (5, 7))
    (said,) = windows[5]["slow_ranks"]
    assert said.startswith("rank 1 on ") and "(CPU) is slow: it computes " in said
    assert f"step 5: {said}\n" in (run / "log.txt").read_text()
    assert [
        event.step for event in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("ranks/slowest_rank")
    ] == [3, 5, 7]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Step 5: rank 1 on " in page and "Efficiency and ranks" in page and "model flops utilisation" in page
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((run / "profile" / "steps-2-3" / f"rank-{rank:05}.json.gz").read_bytes()))
        assert sum(event.get("name") == "_BlockFunctionBackward" for event in trace["traceEvents"]) == 2 * 2
        assert "_BlockFunctionBackward" in (run / "profile" / "steps-2-3" / f"rank-{rank:05}.txt").read_text()
    # The same again ends at the second window, when it is asked to.
    settings["overrides"] = ["name=ended", "stragglers.ends_at=1.6", "profile=null"]
    assert ranks(2).run(train_watched, timeout=TIMEOUT, **settings) == [(75, ""), (75, "")]
    log = (tmp_path / "runs" / "ended" / "log.txt").read_text()
    assert "stopped by rank 1 on " in log and "(stragglers.ends_at 1.6) after step 5 of 8, which is saved" in log


@pytest.mark.slow
def test_a_flipped_bit_is_found_and_the_run_ends_as_if_it_had_not_been(
    ranks: Ranks, shards: Path, tmp_path: Path
) -> None:
    config = write(tmp_path, shards, corruption={"every_steps": 3}, checkpoint={"every_steps": 4})
    settings: dict[str, Any] = {"config": config, "timeout": TIMEOUT}
    flips = {6: 1}  # after the comparison in step 5, that of the checkpoint, before the one in step 7
    assert ranks(2).run(train_watched, overrides=["name=flipped"], flips=flips, **settings) == [(0, "")] * 2
    assert ranks(2).run(train_watched, overrides=["name=whole"], flips={}, **settings) == [(0, "")] * 2
    flipped, whole = tmp_path / "runs" / "flipped", tmp_path / "runs" / "whole"
    (fault,) = (json.loads(line) for line in (flipped / "faults.jsonl").read_text().splitlines())
    assert (fault["kind"], fault["step"]) == ("corrupt", 7)
    assert fault["text"].count("rank 0 on ") == fault["text"].count("rank 1 on ") == 1, "of two, both are named"
    assert "no majority have the same parameters; seen in step 7, and after step 4 all agreed" in fault["text"]
    assert f"step 7: {fault['text']}\nrolled back to step 4\n" in (flipped / "log.txt").read_text()
    assert read_faults(flipped / "faults.jsonl") == [], "the run did not end of it"
    assert rows(flipped) == rows(whole)
    final = "checkpoints/step-00000010"
    one, other = (load_file(run / final / "weights.safetensors") for run in (flipped, whole))
    assert all((one[key] == other[key]).all() for key in other)
    assert read_checkpoint(flipped / final).record.state.roll_backs == 1
    # In the last step of all it is found too; and where no roll back is left, that is the end.
    settings["overrides"] = ["name=stopped", "non_finite.roll_backs=0", "zero_stage=0"]
    ended = ranks(2).run(train_watched, flips={10: 1}, **settings)
    assert [code for code, _ in ended] == [3, 3] and ended[0] == ended[1]
    assert ended[0][1].startswith("step 10: rank 0 on ")
    assert "have the same parameters or reduced gradients; seen in step 10, and after step 8 all agreed;" in ended[0][1]
    assert (
        "the run was rolled back 0 of 0 times: replace that host or device, remove the checkpoints after step 8"
        in ended[0][1]
    )


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_digests_see_a_flip_wherever_there_is_another_copy(
    ranks: Ranks, shards: Path, tmp_path: Path, zero_stage: int
) -> None:
    config = load_yaml(write(tmp_path, shards, zero_stage=zero_stage), RunConfig)
    found = {
        planted: ranks(2).run(digests, config=config, planted=planted)
        for planted in ("", "live", "updated")[: 2 + (zero_stage > 0)]
    }
    wanted = {"": [], "live": [-1] if zero_stage == 3 else [0, 1], "updated": [-1]}
    for planted, everywhere in found.items():
        assert everywhere == [wanted[planted]] * 2, planted


@pytest.mark.slow
def test_of_four_ranks_the_one_that_differs_is_named(ranks: Ranks, shards: Path, tmp_path: Path) -> None:
    config = load_yaml(write(tmp_path, shards), RunConfig)
    assert ranks(4).run(digests, timeout=TIMEOUT, config=config, planted="live") == [[1]] * 4


def test_a_majority_names_the_others_and_without_one_all_are_named() -> None:
    assert differing([(1.0, 2.0)] * 4) == []
    assert differing(["a", "a", "b", "a", "c"]) == [2, 4]
    assert differing(["a", "b"]) == [0, 1]
    assert differing(["a", "a", "b", "b"]) == [0, 1, 2, 3]


def test_a_profile_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    alone = Compute(torch.device("cpu"), "", 0, 1, 0)
    watchdog = Watchdog(WatchdogConfig(enabled=False), tmp_path / "faults.jsonl")
    profiler = Profiler(ProfileConfig(steps=(2, 3)), tmp_path, alone, watchdog)
    for step in (1, 2, 3, 4):
        profiler.before(step)
        assert profiler.after(step) == []
    said = capfd.readouterr().err
    assert said.startswith(f"hyena-ds: {tmp_path}/profile/steps-2-3/rank-00000.json.gz: cannot be written (")
    assert said.endswith("; training goes on without it\n") and said.count("\n") == 1


def test_a_run_without_a_checkpoint_from_before_says_so(tmp_path: Path) -> None:
    policy = NonFiniteConfig()
    assert cannot_mend(tmp_path, RunState(7, 0, 0), policy, 4) is None, "there are none: it begins again"
    (tmp_path / "step-00000006").mkdir()
    found = cannot_mend(tmp_path, RunState(7, 0, 0), policy, 4)
    assert found is not None and found.startswith(
        "the oldest checkpoint that is left is of step 6: start again under another"
    )
    (tmp_path / "step-00000004").mkdir()
    assert cannot_mend(tmp_path, RunState(7, 0, 0), policy, 4) is None
