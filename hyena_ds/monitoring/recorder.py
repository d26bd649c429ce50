"""What a run says while it trains: metrics.jsonl, TensorBoard events, other monitors, log.txt, a progress line. Rank 0 only.

Training depends on none of it but metrics.jsonl; see `Outlet` for what happens to the others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hyena_ds.files.growing import GrowingFile
from hyena_ds.monitoring.events import Events
from hyena_ds.monitoring.metrics import Metrics, recover
from hyena_ds.monitoring.monitors import Monitors
from hyena_ds.monitoring.outlet import Outlet
from hyena_ds.monitoring.progress import Progress, Reached, give_up_terminal
from hyena_ds.monitoring.scalars import Scalar
from hyena_ds.monitoring.spikes import LossHistory


class Recorder:
    """Open for a run that continues after `step`: later rows of metrics.jsonl, of a run cut short, are dropped."""

    def __init__(
        self, metrics: Path, log: Path, tensorboard: Path, step: int, progress: Progress, monitors: Monitors | None
    ):
        """Raises LocalError where metrics.jsonl is not usable."""
        self._progress, self._metrics = progress, Metrics(metrics)
        self._log, self._events = GrowingFile(log), Events(tensorboard, step)
        self._to_terminal, self._to_log = Outlet("terminal", self.say), Outlet(str(log), self.say)
        curves = {str(tensorboard): self._events.write, **(monitors.writers if monitors is not None else {})}
        self._curves = [(Outlet(name, self.say), write) for name, write in curves.items()]
        rows, news = recover(metrics, step)
        for line in news:
            self.say(line)
        self.validations = [row for row in rows if "validation_loss" in row]
        """Rows of the validations from before."""
        self.scored = {(row["step"], row["context_length"]) for row in self.validations}
        """Step and context length of every validation that there is a row of."""
        self.losses = LossHistory(rows)

    def close(self) -> None:
        """Close everything, and say how many writes were lost where."""
        self.end_progress()
        self._events.close()
        self._metrics.close()
        for outlet in (*(outlet for outlet, _ in self._curves), self._to_log, self._to_terminal):
            outlet.close()
        self._log.close()
        if self._to_terminal.lost:
            self._to_terminal.attempt(give_up_terminal)

    def say(self, line: str) -> None:
        """A line for the terminal and for log.txt."""
        self._to_terminal.attempt(lambda: self._progress.say(line))
        self._write_log(line)

    def row(self, row: dict[str, Any], scalars: list[Scalar]) -> None:
        """Append a row to metrics.jsonl, NaN and infinity as null; `scalars` go to TensorBoard and the monitors."""
        self._metrics.append(row)
        if "validation_loss" in row:
            self.scored.add((row["step"], row["context_length"]))
        for outlet, write in self._curves:
            outlet.attempt(partial(write, scalars, row["step"]))

    def problem(self) -> str | None:
        """Why metrics.jsonl lacks rows, after another attempt to write them."""
        return self._metrics.problem()

    def advance(self, now: Reached) -> None:
        """Show how far the run is: on a terminal by its bar, in log.txt by a line now and then."""
        self._to_terminal.attempt(lambda: self._advance(now))

    def end_progress(self) -> None:
        """Take the bar away: what follows is for reading."""
        self._to_terminal.attempt(self._progress.close)

    def _advance(self, now: Reached) -> None:
        line = self._progress.advance(now)
        if line is not None and self._progress.has_bar:
            self._write_log(line)
        elif line is not None:
            self.say(line)

    def _write_log(self, line: str) -> None:
        self._to_log.attempt(lambda: self._log.append((line + "\n").encode(errors="replace")))
