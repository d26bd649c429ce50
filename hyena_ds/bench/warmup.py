"""`hyena-ds bench warmup`: what context warmup did to runs of one model on the same tokens, seed by seed.

    RUN/{config.yaml, metrics.jsonl, summary.json} ... --> a row a run --> mean and standard deviation with and without

The loss is that of the last validation, at the context that all runs end with. Seconds are those of the training steps
alone: validation, checkpoints and start are left out.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.bench.measure import machine
from hyena_ds.bench.report import Column, Row, describe_machine, print_table
from hyena_ds.errors import UserError
from hyena_ds.files.rows import METRICS, read_rows, read_summary, training_time

WITH, WITHOUT = "with warmup", "without warmup"


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each run, then one for each side."""
    rows = sorted(
        (read_run(Path(path)) for path in options.runs), key=lambda row: (row["side"] == WITHOUT, row["seed"])
    )
    check_comparable(rows)
    sides = [summed_up([row for row in rows if row["side"] == side]) for side in (WITH, WITHOUT)]
    print_table(_RUN_COLUMNS, rows)
    described = machine()
    print_table(_SIDE_COLUMNS, sides, describe_machine(described))
    return [*rows, *sides], described


def read_run(path: Path) -> Row:
    """What a finished run says of itself. Raises UserError for one that is not finished."""
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        if not (path / name).is_file():
            raise UserError(
                f"{path}: found no {name}, wanted the directory of a finished run; train it to the end first"
            )
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    summary = read_summary(path / "summary.json") or {}
    if missing := [name for name in ("context_length", "step", "validation_loss") if name not in summary]:
        raise UserError(f"{path / 'summary.json'}: not readable (no {', '.join(missing)}); train the run again")
    seconds, tokens = training_time(read_rows(path / "metrics.jsonl", METRICS))
    return {
        "side": WITH if config.get("warmup") else WITHOUT,
        "status": "measured",
        "seed": config["seed"],
        "context_length": summary["context_length"],
        "steps": summary["step"],
        "tokens": tokens,
        "validation_loss": summary["validation_loss"],
        "training_seconds": seconds,
        "model": config["model"],
    }


def check_comparable(rows: list[Row]) -> None:
    """Raise UserError unless both sides have the same seeds, and all the same model, final context and tokens."""
    for key in ("model", "context_length", "tokens"):
        values = [row[key] for row in rows]
        if any(value != values[0] for value in values):
            other = next(value for value in values if value != values[0])
            raise UserError(f"runs: found {key} {values[0]} and {other}, wanted the same in all; train them alike")
    seeds = {side: [row["seed"] for row in rows if row["side"] == side] for side in (WITH, WITHOUT)}
    if seeds[WITH] != seeds[WITHOUT]:
        raise UserError(
            f"runs: found seeds {seeds[WITH]} {WITH} and {seeds[WITHOUT]} {WITHOUT}, wanted the same on both sides; name "
            "two runs a seed"
        )


def summed_up(rows: list[Row]) -> Row:
    """Mean and standard deviation (of the sample) over the seeds of a side."""
    side: Row = {"side": rows[0]["side"], "status": "measured", "seeds": len(rows)}
    for key in ("validation_loss", "training_seconds"):
        values = [row[key] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        side[key] = {"mean": statistics.mean(values), "standard_deviation": deviation}
    return side


def _shown(value: dict[str, float | None], digits: int) -> str:
    deviation = value["standard_deviation"]
    return f"{value['mean']:.{digits}f}" + (f" +- {deviation:.{digits}f}" if deviation is not None else "")


_RUN_COLUMNS: list[Column] = [
    ("run", lambda row: row["side"]),
    ("seed", lambda row: str(row["seed"])),
    ("steps", lambda row: f"{row['steps']:,}"),
    ("tokens", lambda row: f"{row['tokens']:,}"),
    ("loss at", lambda row: f"{row['context_length']:,}"),
    ("nats a base", lambda row: f"{row['validation_loss']:.4f}"),
    ("training s", lambda row: f"{row['training_seconds']:.1f}"),
]
_SIDE_COLUMNS: list[Column] = [
    ("mean +- standard deviation", lambda row: row["side"]),
    ("seeds", lambda row: str(row["seeds"])),
    ("nats a base", lambda row: _shown(row["validation_loss"], 4)),
    ("training s", lambda row: _shown(row["training_seconds"], 1)),
]
