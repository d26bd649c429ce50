"""How far another test set of the same size would move a score: its standard error, by the bootstrap.

    sequences --drawn anew with replacement, as many--> score, again and again --> standard deviation of the scores

Sequences are taken as independent. A sequence is drawn with all of its bases, so bases of one sequence are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.labelled.metrics import measured

Array = NDArray[Any]
MOST_DRAWS, FEWEST_DRAWS = 200, 10
"""Test sets that are drawn: with 200 the standard error is itself known to a twentieth."""
_NUMBERS = 10**9
"""Of larger sets fewer are drawn: so many numbers in all, but FEWEST_DRAWS at least."""


def standard_error(
    kind: str, metric: str, targets: Sequence[Array] | Array, predictions: Sequence[Array] | Array
) -> float:
    """The standard error of `metric` on n sequences; NaN where it cannot be said.

    `targets` and `predictions` are as `measured` takes them; of the kind per_base n of either, one a sequence.
    """
    count, draw = len(targets), np.random.default_rng(0)
    size = sum(len(each) for each in predictions) if kind == "per_base" else np.size(predictions)
    found = []
    for _ in range(int(np.clip(_NUMBERS // max(1, size), FEWEST_DRAWS, MOST_DRAWS))):
        rows = draw.integers(0, count, count)
        if kind == "per_base":
            chosen = rows.tolist()
            parts = [np.concatenate([part[row] for row in chosen]) for part in (targets, predictions)]
        else:
            parts = [np.asarray(part)[rows] for part in (targets, predictions)]
        found.append(measured(kind, *parts, only=metric)[metric])
    known = [value for value in found if value == value]
    return float(np.std(known, ddof=1)) if len(known) > 1 and count > 1 else float("nan")
