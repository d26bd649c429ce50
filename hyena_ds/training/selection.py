"""Which validation of a run was the best, and when it is time to end: from the rows that metrics.jsonl has, so that a resumed
run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hyena_ds.tasks.task import Task


@dataclass
class Selection:
    """The same on every rank. Of equal validations the first is the best."""

    task: Task
    best: dict[str, Any] | None = None
    """The row of the best validation whose weights are there; None where none was better than not a number."""
    since: int = 0
    """Validations after it."""
    _last: int = 0

    def restore(self, rows: Iterable[dict[str, Any]], saved: set[int]) -> None:
        """Take in the validations of a run that goes on; `saved` are the steps of its checkpoints."""
        for row in rows:
            self.add(row, saved)

    def add(self, row: dict[str, Any], saved: set[int] | None = None) -> bool:
        """Take in a validation; whether it is the best so far, and its weights are to be kept."""
        if not self.task.selects or row["step"] <= self._last:
            return False
        self._last = row["step"]
        value = _value(self.task, row)
        before = None if self.best is None else _value(self.task, self.best)
        lower = self.task.best[1]
        better = value is not None and (before is None or (value < before if lower else value > before))
        if better and (saved is None or row["step"] in saved):
            self.best, self.since = row, 0
            return True
        self.since += 1
        return False

    @property
    def step(self) -> int | None:
        """The step of the best validation."""
        return None if self.best is None else int(self.best["step"])

    @property
    def ends(self) -> bool:
        """Whether the task's patience is over."""
        return self.task.patience is not None and self.since >= self.task.patience


def _value(task: Task, row: dict[str, Any]) -> float | None:
    found = row.get(f"validation_{task.best[0]}")
    return float(found) if found is not None and found == found else None
