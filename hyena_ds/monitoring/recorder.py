"""What a run says while it trains: metrics.jsonl, TensorBoard events, other monitors, log.txt, a progress line. Rank 0 only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from hyena_ds.monitoring.monitors import Monitors
from hyena_ds.monitoring.progress import Progress, Reached
from hyena_ds.monitoring.scalars import Scalar
from hyena_ds.monitoring.spikes import LossHistory


class Recorder:
    """Open for a run that continues after `step`: later rows of metrics.jsonl, of a run cut short, are dropped."""

    def __init__(
        self, metrics: Path, log: Path, tensorboard: Path, step: int, progress: Progress, monitors: Monitors | None
    ):
        kept = _drop_rows_after(metrics, step)
        self.scored = {(row["step"], row["context_length"]) for row in kept if "validation_loss" in row}
        """Step and context length of every validation that there is a row of."""
        self.losses = LossHistory(kept)
        self._metrics = metrics.open("a", encoding="utf-8")
        self._log = log.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)
        self._progress, self._monitors = progress, monitors

    def close(self) -> None:
        self._progress.close()
        self._events.close()
        self._metrics.close()
        self._log.close()

    def say(self, line: str) -> None:
        """A line for the terminal and for log.txt."""
        self._progress.say(line)
        self._log.write(line + "\n")
        self._log.flush()

    def row(self, row: dict[str, Any], scalars: list[Scalar]) -> None:
        """Append a row to metrics.jsonl, NaN and infinity as null; `scalars` go to TensorBoard and the monitors."""
        self._metrics.write(json.dumps(finite(row)) + "\n")
        self._metrics.flush()
        if "validation_loss" in row:
            self.scored.add((row["step"], row["context_length"]))
        for name, value in scalars:
            self._events.add_scalar(name, value, row["step"])
        if self._monitors is not None:
            self._monitors.write(scalars, row["step"])

    def advance(self, now: Reached) -> None:
        """Show how far the run is: on a terminal by its bar, in log.txt by a line now and then."""
        line = self._progress.advance(now)
        if line is not None and self._progress.has_bar:
            self._log.write(line + "\n")
            self._log.flush()
        elif line is not None:
            self.say(line)

    def end_progress(self) -> None:
        """Take the bar away: what follows is for reading."""
        self._progress.close()


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """`row` as JSON can say it: None for NaN and infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _drop_rows_after(metrics: Path, step: int) -> list[dict[str, Any]]:
    """Rewrite metrics.jsonl without rows after `step`; the rows that stay."""
    if not metrics.is_file():
        return []
    rows = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the last line of a killed run may be half-written
        if row["step"] <= step:
            rows.append(row)
    partial = metrics.with_name(f".{metrics.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(metrics)
    return rows
