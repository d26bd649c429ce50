"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hyena_ds
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from tests.training.runs import make_shards, rows, start_ranks, train, tree, write_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3] if os.environ.get("HYENA_FULL") else [3])
def test_killed_in_mid_accumulation_of_the_second_stage_the_rest_is_equal_bit_for_bit(
    zero_stage: int, shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", shards, zero_stage=zero_stage)
    whole = train(config, "name=whole")
    assert whole.returncode == 0, whole.stderr
    # Step 7 (the eighth) lies in the second stage, one step past the checkpoint of step 6; it has 4 micro steps.
    codes = start_ranks("tests.training.killed_rank", ["train", str(config)], 2, KILL_STEP="7", KILL_RANK="1")
    assert codes[1] == -signal.SIGKILL
    killed = rows(tmp_path / "runs" / "run")
    assert max(row["step"] for row in killed) == 7
    resumed = train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 6" in resumed.stdout
    assert rows(tmp_path / "runs" / "run") == rows(tmp_path / "runs" / "whole")
    final = "checkpoints/step-00000010/weights.safetensors"
    ours, theirs = (load_file(tmp_path / "runs" / name / final) for name in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)
    hyena_ds.load_model(tmp_path / "runs" / "run" / final)
    # Killed after the last checkpoint, before the summary: the rest is made once more, and nothing is written twice.
    (tmp_path / "runs" / "run" / "summary.json").unlink()
    assert train(config).returncode == 0
    assert rows(tmp_path / "runs" / "run") == rows(tmp_path / "runs" / "whole")
    again = train(config)
    assert again.returncode == 0
    assert "is complete" in again.stdout


@pytest.mark.slow
def test_damaged_on_the_way_it_goes_on_from_the_one_before_under_another_zero_stage_with_the_same_losses(
    shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", shards, zero_stage=0)
    assert train(config, "name=whole").returncode == 0
    start_ranks("tests.training.killed_rank", ["train", str(config)], 2, KILL_STEP="7", KILL_RANK="0")
    run = tmp_path / "runs" / "run"
    damaged = run / "checkpoints" / "step-00000006" / "state-00001-of-00002.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    # What made the state cannot change, and nothing is touched.
    before = tree(run)
    refused = train(config, "model.layers=3", "stages.0.global_batch=2", "zero_stage=3")
    assert refused.returncode == 2
    assert "(model.layers: 2 -> 3; stages.0.global_batch: 6 -> 2); set them back" in refused.stderr
    assert tree(run) == before
    resumed = train(config, "zero_stage=3", "convolution=fft", "optimizer.epsilon=1.1e-8")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count(f"damaged checkpoint passed over: {damaged}: does not match its SHA-256") == 1
    for line in ("zero_stage: 0 -> 3", "convolution: auto -> fft", "optimizer.epsilon: 1e-08 -> 1.1e-08"):
        assert f"changed since: {line}" in resumed.stdout
    assert "resuming after step 4 from " in resumed.stdout
    assert "convolution: fft (as configured)" in resumed.stdout
    assert load_yaml(run / "config.yaml", RunConfig).zero_stage == 3
    for ours, theirs in zip(rows(run), rows(tmp_path / "runs" / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    # Another run goes on from a checkpoint that is named.
    checkpoint = tmp_path / "runs" / "whole" / "checkpoints" / "step-00000009"
    assert train(config, "name=branch", f"resume={checkpoint}").returncode == 0
    (tail,) = (row for row in rows(tmp_path / "runs" / "branch") if "loss" in row)
    assert tail in rows(tmp_path / "runs" / "whole")
