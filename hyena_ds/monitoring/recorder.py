"""What a run says while it trains: metrics.jsonl, TensorBoard events, log.txt, a progress bar. Rank 0 only."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hyena_ds.monitoring.spikes import LossHistory

_PLAIN_SECONDS = 15.0
"""Seconds between progress lines where there is no terminal."""


class Recorder:
    """Open for a run that continues after `step`: later rows of metrics.jsonl, of a run cut short, are dropped."""

    def __init__(self, metrics: Path, log: Path, tensorboard: Path, step: int, total_steps: int):
        kept = _drop_rows_after(metrics, step)
        self.scored = {(row["step"], row["context_length"]) for row in kept if "validation_loss" in row}
        """Step and context length of every validation that there is a row of."""
        self.losses = LossHistory(kept)
        self._metrics = metrics.open("a", encoding="utf-8")
        self._log = log.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)
        self._total_steps = total_steps
        self._said = time.monotonic()
        # In a terminal a bar; in a log file a plain line now and then.
        self._bar = tqdm(
            initial=step,
            total=total_steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def close(self) -> None:
        self._bar.close()
        self._events.close()
        self._metrics.close()
        self._log.close()

    def say(self, line: str) -> None:
        """A line for the terminal and for log.txt."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._log.write(line + "\n")
        self._log.flush()

    def row(self, row: dict[str, Any], prefix: str) -> None:
        """Append a row to metrics.jsonl and its numbers to TensorBoard under `prefix/`; NaN and infinity become null."""
        row = finite(row)
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        if "validation_loss" in row:
            self.scored.add((row["step"], row["context_length"]))
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(f"{prefix}/{name}", value, row["step"])

    def advance(self, step: int, loss: float) -> None:
        """Show that `step` steps are done."""
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if self._bar.disable and time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            self.say(f"step {step} of {self._total_steps}: loss {loss:.4f}")

    def end_progress(self) -> None:
        """Take the bar away: what follows is for reading."""
        self._bar.close()


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
