"""Sweeps of a task: short configs, and metrics of the test set over one setting, by seed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.errors import UserError
from hyena_ds.sweeps import curves
from hyena_ds.sweeps.plan import Sweep, load_sweep
from hyena_ds.sweeps.results import rows_of
from tests.tasks.test_in_context_runs import write_run

AXES = "axes: {task.demonstrations.per_class: [0, 5], task.epochs: [1, 2], seed: [1, 2]}\nrun: k{task.demonstrations.per_class}"


def task_sweep(folder: Path, text: str) -> Sweep:
    write_run(folder, test=str(folder / "test.csv"), demonstrations={"per_class": 1})
    file = folder / "sweep.yaml"
    file.write_text(f"name: trial\nbase: icl.yaml\noutput: {folder / 'runs'}\n{text}\n")
    return load_sweep(str(file), [])


@pytest.fixture()
def sweep(tmp_path: Path) -> Sweep:
    """All runs but the last are complete; run N has the accuracy N / 10."""
    sweep = task_sweep(tmp_path, f"{AXES}-e{{task.epochs}}-s{{seed}}")
    for run in sweep.runs[:-1]:
        run.directory.mkdir(parents=True)
        metrics = {"loss": 0.7, "accuracy": run.number / 10, "mcc": 0.25, "auroc": None, "name": "text"}
        (run.directory / "summary.json").write_text(
            json.dumps({"step": 1, "context_length": 64, "validation_loss": 0.5, "test": {"metrics": metrics}})
        )
    return sweep


def test_a_short_config_is_completed_for_every_run_of_a_sweep(sweep: Sweep) -> None:
    contexts = {
        run.varied["task.demonstrations.per_class"]: run.config.schedule[0].context_length for run in sweep.runs
    }
    assert contexts == {"0": 64, "5": 128}, "five of both classes take 91 tokens and a sequence 6"
    assert {run.varied["task.epochs"]: run.config.total_steps for run in sweep.runs}.keys() == {"1", "2"}


def test_a_point_is_the_mean_over_seeds_and_a_line_has_one_value_of_all_else(sweep: Sweep) -> None:
    setting, points = curves.points_of(sweep, rows_of(sweep))
    assert setting == "task.demonstrations.per_class"
    found = {(point.label, point.x): point.values["accuracy"] for point in points}
    assert found == {
        ("epochs 1", 0): [0.0, 0.1],
        ("epochs 1", 5): [0.4, 0.5],
        ("epochs 2", 0): [0.2, 0.3],
        ("epochs 2", 5): [0.6],
    }
    assert all("auroc" not in point.values for point in points), "what was not measured is no number"
    table = curves.table(sweep, rows_of(sweep))
    assert "| epochs 1 | 5 | 2 | 0.450 ± 0.071 | 0.250 ± 0.000 | - |" in table
    assert "| epochs 2 | 5 | 1 | 0.600 | 0.250 | - |" in table


def test_the_command_writes_the_metrics_of_the_test_set_and_the_plot(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", sweep.file, "--table"]) == 0
    printed = capsys.readouterr().out
    assert "test accuracy" in printed and "0.450 ± 0.071" in printed and "bits a base" not in printed
    with (sweep.directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test_accuracy"] for row in rows] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", ""]
    assert rows[0]["test_auroc"] == "" and rows[0]["loss"] == "0.5"
    pytest.importorskip("matplotlib", reason="the plot takes matplotlib")
    assert (sweep.directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_two_points_there_is_no_plot_and_it_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = task_sweep(tmp_path, "axes: {task.demonstrations.per_class: [0, 5]}")
    assert main(["sweep", sweep.file, "--table"]) == 0
    sentence = "no plot: found fewer than two values of task.demonstrations.per_class among the complete runs"
    assert sentence in capsys.readouterr().out
    sweep = task_sweep(tmp_path, "axes: {task.class_weights: [none]}\nsettings: {seed: 1}")
    with pytest.raises(UserError, match="found no setting of the task that varies with numbers"):
        curves.plot(sweep, rows_of(sweep))
    assert curves.table(sweep, rows_of(sweep)) == []
