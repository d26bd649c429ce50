"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hyena_ds
from tests.training.runs import make_shards, rows, start_ranks, train, write_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("zero_stage", [1, 3])
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


def test_a_checkpoint_of_one_grid_and_zero_stage_resumes_on_another_with_the_same_losses(
    shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", shards, zero_stage=0)
    assert train(config, "name=whole").returncode == 0
    start_ranks("tests.training.killed_rank", ["train", str(config)], 2, KILL_STEP="3", KILL_RANK="0")
    run_config = tmp_path / "runs" / "run" / "config.yaml"
    run_config.write_text(run_config.read_text().replace("zero_stage: 0", "zero_stage: 3"))
    # Nor does the convolution's back end belong to what a run is.
    resumed = train(config, "zero_stage=3", "convolution=fft")
    assert resumed.returncode == 0, resumed.stderr
    assert "convolution: fft (as configured)" in resumed.stdout
    for ours, theirs in zip(rows(tmp_path / "runs" / "run"), rows(tmp_path / "runs" / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
