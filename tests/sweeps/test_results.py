"""What a sweep's runs came to, as a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.sweeps.plan import Sweep, load_sweep
from hyena_ds.sweeps.plot import lines_of
from hyena_ds.sweeps.results import Outcome, rows_of
from tests.sweeps.test_plan import write_sweep

LOSSES = {32: 1.5, 64: 1.25}
AXES = "axes: {stages.1.context_length: [32, 64], model.width: [16, 32]}\n"


@pytest.fixture()
def sweep(tmp_path: Path) -> Sweep:
    """Three complete runs, and one that failed after a step."""
    sweep = load_sweep(write_sweep(tmp_path, AXES), [])
    for run in sweep.runs:
        length = run.config.stages[1].context_length
        run.directory.mkdir(parents=True)
        steps = [
            {"step": 1, "loss": 2.0, "tokens": 100, "tokens_per_second": 50.0, "input_wait_seconds": 0.5},
            {"step": 2, "loss": None, "skipped": True, "tokens": 100, "tokens_per_second": 9.0},
            {"step": 3, "loss": 2.0, "tokens": 300, "tokens_per_second": 100.0, "peak_memory_gib": 0.25},
        ]
        (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
        if run.number < 3:
            summary = {"context_length": length, "validation_loss": LOSSES[length], "validation_perplexity": 4.0}
            summary |= {"validation_bits_per_base": 2.0, "markov_losses": {"0": 1.375}}
            (run.directory / "summary.json").write_text(json.dumps(summary))
        else:
            Outcome(70, "rank 1 died", 12.5).write(run.directory)
    return sweep


def test_rows_hold_the_last_validation_the_rate_over_all_steps_and_the_error(sweep: Sweep) -> None:
    rows = rows_of(sweep)
    assert [row["status"] for row in rows] == ["complete"] * 3 + ["failed (70)"]
    assert [row["loss"] for row in rows] == [1.5, 1.5, 1.25, None]
    # 100 tokens in 2 s and a wait of 0.5 s, 200 tokens in 2 s; nothing was trained in the skipped step.
    assert rows[0]["training_seconds"] == 4.5 and rows[0]["tokens_per_second"] == pytest.approx(300 / 4.5)
    assert rows[0]["peak_memory_gib"] == 0.25 and rows[0]["tokens"] == 300
    assert (rows[3]["exit_code"], rows[3]["error"]) == (70, "rank 1 died")


def test_a_line_of_the_plot_has_one_value_of_everything_but_the_context(sweep: Sweep) -> None:
    lines = lines_of(sweep, rows_of(sweep))
    found = {label: [row["context_length"] for row in points] for label, points in lines.items()}
    assert found == {"width 16": [32, 64], "width 32": [32]}


def test_the_table_the_csv_file_and_the_plot_are_written_by_one_command(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", sweep.file, "--table"]) == 0
    printed = capsys.readouterr().out
    assert "context_length-64-width-32: rank 1 died" in printed and "failed (70)" in printed and "1.2500" in printed
    with (sweep.directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model.width"] for row in rows] == ["16", "32", "16", "32"]
    assert [row["loss"] for row in rows] == ["1.5", "1.5", "1.25", ""]
    pytest.importorskip("matplotlib", reason="the plot takes matplotlib")
    assert (sweep.directory / "contexts.png").read_bytes().startswith(b"\x89PNG")


def test_without_two_contexts_there_is_no_plot_and_it_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", write_sweep(tmp_path, "axes: {seed: [1, 2]}\n"), "--table"]) == 0
    assert "no plot: found fewer than two context lengths among the complete runs" in capsys.readouterr().out
