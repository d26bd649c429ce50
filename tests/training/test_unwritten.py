"""Monitoring never ends training; a metrics.jsonl that cannot be written ends it in good order, on all ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyena_ds.checkpoints.directory import checkpoints_in, problem_of
from hyena_ds.errors import UnwrittenError
from hyena_ds.files.rows import METRICS, read_lines, read_rows
from tests.training.runs import ends_of_ranks, make_shards, rows, train, write_config

STAGES = [{"context_length": 32, "steps": 12, "global_batch": 4, "micro_batch_size": 2}]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    done = train(config(directory, shards))
    assert done.returncode == 0, done.stderr
    return directory / "runs" / "run"


def config(directory: Path, shards: Path) -> Path:
    kept = {"every_steps": 4, "keep_last": 9, "background": False}
    return write_config(
        directory / "config.yaml", shards, stages=STAGES, checkpoint=kept, validation={"every_steps": 6, "windows": 2}
    )


def losses(run: Path) -> list[tuple[int, float | None]]:
    return [(row["step"], row.get("loss", row.get("validation_loss"))) for row in rows(run)]


@pytest.mark.slow
def test_strangers_where_monitoring_writes_change_no_row_of_a_run(
    shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    own = config(tmp_path, shards)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    shutil.copy(undisturbed / "config.yaml", run / "config.yaml")
    for name in ("tensorboard", "csv"):
        (run / name).write_text("a stranger's")
    for name in ("log.txt", "environment.jsonl"):
        (run / name).mkdir()
    done = train(own, "monitors.csv=true")
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in output, output
    for name in ("tensorboard", "csv", "log.txt"):
        assert output.count(f"{run / name}: cannot be written (") == 1, output
    assert f"{run / 'environment.jsonl'}: cannot be written (Is a directory)" in output
    assert f"{run / 'tensorboard'}: 14 writes were lost" in output
    assert losses(run) == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kept"),
    [
        (1800, "nor could step 6 be saved; the newest whole checkpoint is {run}/checkpoints/step-00000004"),
        (0, "step 6 is saved"),
    ],
    ids=["no room at all", "room for all but the rows"],
)
def test_rows_that_find_no_room_end_all_ranks_at_a_step_with_a_checkpoint_if_there_is_room_for_one(
    size: int, kept: str, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    own = config(tmp_path, shards)
    run = tmp_path / "runs" / "run"
    fault = {"FAULT_STEP": "4", "FAULT_BYTES": str(size)}
    if size == 0:  # the row alone: a link to a disk that is full
        fault = {"FAULT_STEP": "4", "FAULT_BYTES": str(1 << 30), "FAULT_FILE": str(run / "metrics.jsonl")}
    ends = ends_of_ranks("tests.training.unwritten_rank", ["train", str(own)], 2, **fault)
    output = "".join(text for _, text in ends)
    assert "Traceback" not in output, output
    assert [code for code, _ in ends] == [UnwrittenError.exit_code] * 2, output
    (sentence,) = (line for line in output.splitlines() if line.startswith("hyena-ds: error: "))
    assert sentence.startswith(f"hyena-ds: error: {run / 'metrics.jsonl'}: cannot be written (")
    assert f"so the run ends: {kept.format(run=run)}; make room" in sentence
    assert problem_of(checkpoints_in(run / "checkpoints")[0], first=0) is None
    if size == 0:
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl.before").rename(run / "metrics.jsonl")
    assert all(line.row is not None for line in read_lines(run / "metrics.jsonl", METRICS)), "nothing is half-written"
    again = train(own)
    assert again.returncode == 0, again.stderr
    lost = (4, 5) if size == 0 else ()  # the rows of steps 5 and 6; the validation after step 6 is made up for
    assert losses(run) == [pair for number, pair in enumerate(losses(undisturbed)) if number not in lost]
    assert ("metrics.jsonl: no row of steps 5 to 6 (2 of 6 steps)" in again.stdout) == bool(lost)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_step_costs_nothing(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    fault = {"FAULT_STEP": "4", "FAULT_BYTES": "0", "FAULT_UNTIL": "5"}
    ends = ends_of_ranks("tests.training.unwritten_rank", ["train", str(config(tmp_path, shards))], 2, **fault)
    assert [code for code, _ in ends] == [0, 0], ends
    run = tmp_path / "runs" / "run"
    assert losses(run) == losses(undisturbed) and len(read_rows(run / "metrics.jsonl", METRICS)) == 14
