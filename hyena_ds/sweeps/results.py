"""What a sweep's runs came to, from what they left on the disk: also while they run, here or on a cluster.

    RUN/{summary.json, metrics.jsonl, faults.jsonl}, RUN.outcome.json --> a row a run --> terminal, results.csv

Takes no torch.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyena_ds.config.schema import RunConfig
from hyena_ds.files.rows import METRICS, Row, is_number, read_faults, read_json, read_rows, read_summary, training_time
from hyena_ds.files.whole import aside, write_whole
from hyena_ds.labelled.metrics import OF_KIND
from hyena_ds.redaction import redacted
from hyena_ds.runtime.interruption import STOPPED_CODES
from hyena_ds.sweeps.plan import Sweep, SweepRun
from hyena_ds.text import aligned

RESULTS = "results.csv"
COMPLETE = "complete"
"""Status of a run that is."""


@dataclass(frozen=True)
class Outcome:
    """How the last start of a run ended."""

    exit_code: int
    error: str | None
    seconds: float
    """From start to end, on the clock."""

    def write(self, directory: Path) -> None:
        """Write the outcome down beside the run's directory."""
        write_whole(_outcome_file(directory), json.dumps(asdict(self), indent=1) + "\n")


def read_outcome(directory: Path) -> Outcome | None:
    """None where `run_all` has not seen an end of the run in `directory`."""
    try:
        found = Outcome(**read_json(_outcome_file(directory)))
    except TypeError:
        return None
    whole = type(found.exit_code) is int and is_number(found.seconds) and isinstance(found.error, str | None)
    return found if whole else None


def rows_of(sweep: Sweep) -> list[Row]:
    """A row a run, in the sweep's order."""
    return [_row(run) for run in sweep.runs]


def _row(run: SweepRun) -> Row:
    steps = [row for row in read_rows(run.paths.metrics, METRICS) if "loss" in row]
    outcome = read_outcome(run.directory)
    summary = read_summary(run.paths.summary) or {}
    seconds, tokens = training_time(steps)
    last = steps[-1] if steps else {}
    status, error = _status(run, outcome, last.get("step", 0))
    return {
        "run": run.name,
        **run.varied,
        "context_length": run.config.schedule[-1].context_length,
        "status": status,
        "step": last.get("step", 0),
        "tokens": last.get("tokens", 0),
        **{key: summary.get(f"validation_{key}") for key in ("loss", "perplexity", "bits_per_base")},
        "tokens_per_second": tokens / seconds if seconds else None,
        "training_seconds": seconds or None,
        "peak_memory_gib": max((row.get("peak_memory_gib") or 0.0 for row in steps), default=0.0) or None,
        **{f"test_{name}": _tested(summary).get(name) for name in test_metrics(run.config)},
        "exit_code": 0 if status == COMPLETE else outcome and outcome.exit_code,
        "error": error,
    }


def test_metrics(config: RunConfig) -> tuple[str, ...]:
    """What is measured of the test set; nothing where a run has none."""
    return () if config.task is None or config.task.test is None else ("loss", *OF_KIND[config.task.kind])


def _tested(summary: Row) -> dict[str, Any]:
    test = summary.get("test")
    found = test.get("metrics") if isinstance(test, dict) else None
    return {name: value for name, value in found.items() if is_number(value)} if isinstance(found, dict) else {}


def _status(run: SweepRun, outcome: Outcome | None, step: int) -> tuple[str, str | None]:
    """In a word or two, and the last error of a run that is not complete."""
    if run.paths.is_complete():
        return COMPLETE, None
    if outcome is not None and outcome.exit_code not in STOPPED_CODES:
        return f"failed ({outcome.exit_code})", outcome.error and redacted(outcome.error)
    faults = read_faults(run.paths.faults)
    error = redacted(str(faults[-1]["text"])) if faults else None
    if step or faults:
        return f"unfinished, {step:,} of {run.config.total_steps:,} steps", error
    return "not started", None


def write_csv(sweep: Sweep, rows: list[Row]) -> Path:
    """results.csv in the sweep's directory."""
    file = sweep.directory / RESULTS
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


_NUMBERS = (
    ("tokens", "tokens", 0),
    ("loss", "loss", 4),
    ("perplexity", "perplexity", 4),
    ("bits a base", "bits_per_base", 4),
    ("tokens/s", "tokens_per_second", 0),
    ("GiB", "peak_memory_gib", 2),
    ("seconds", "training_seconds", 1),
)
"""Title, key of a row, and decimals that are shown."""
_OF_BASES = ("perplexity", "bits_per_base", "tokens_per_second")
"""Keys that say nothing of a task."""
_MOST_METRICS = 4
"""Columns of the test set that are shown."""


def table(rows: list[Row]) -> list[str]:
    """For reading; loss is of the last validation, tokens/s and seconds are of training alone."""
    tested = [key for key in rows[0] if key.startswith("test_")][:_MOST_METRICS]
    numbers = [each for each in _NUMBERS if not tested or each[1] not in _OF_BASES]
    numbers[2:2] = [(key.replace("_", " "), key, 4) for key in tested]
    cells = [["", "run", "context", "status", *(title for title, _, _ in numbers)]]
    for number, row in enumerate(rows):
        known = {**row, "tokens": row["tokens"] or None}
        shown = ("-" if known[key] is None else f"{known[key]:,.{digits}f}" for _, key, digits in numbers)
        cells.append([str(number), row["run"], f"{row['context_length']:,}", row["status"], *shown])
    return aligned(cells, left=(1, 3)) + [f"{row['run']}: {row['error']}" for row in rows if row["error"]]


def _outcome_file(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.outcome.json")
