"""How far a loss jumps out of the row: in standard deviations of the last steps' losses, from their mean.

It follows from the rows of metrics.jsonl alone, so a resumed run continues it as if it had never stopped.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

WINDOW = 100
"""Steps that a loss is compared with."""
_FEWEST = 20
"""Steps without which there is no measure."""


class LossHistory:
    """Losses of the last steps that were trained on."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        """Continue after `rows` of metrics.jsonl."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        for row in rows:
            if row.get("loss") is not None and not row.get("skipped"):
                self._losses.append(row["loss"])

    def spike(self, loss: float) -> float | None:
        """(loss - mean) / standard deviation of the steps before; None while they are few, or all the same."""
        measure = None
        if len(self._losses) >= _FEWEST and math.isfinite(loss):
            deviation = statistics.pstdev(self._losses)
            measure = (loss - statistics.fmean(self._losses)) / deviation if deviation > 0 else None
        return measure

    def add(self, loss: float) -> None:
        """Count the loss of a step that was trained on among the steps before."""
        self._losses.append(loss)
