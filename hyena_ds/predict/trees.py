"""Boosted trees (XGBoost) on a frozen model's pooled states: as many rounds as are best on the validation split.

    states_nD, targets --a round: a tree for each class or number--> outputs of the validation split --judge--> better? --> keep

Two classes have one tree a round, whose answer is half up for the second class and half down for the first.

n sequences, D width, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import need
from hyena_ds.tasks.labelled_sets import Sets

Array = NDArray[Any]
Judge = Callable[[Sequence[Array]], float]
"""How good outputs (n of (K,)) of the validation split are; the higher, the better."""


@dataclass(frozen=True)
class Trees:
    """The trees of the best round and of those before it."""

    booster: Any
    chosen: Mapping[str, float]
    """Their rounds."""
    classes: int
    """Classes of a classification, else 0."""

    def outputs(self, states_nD: Array) -> Array:
        """(n, D) -> (n, K), float64: what the softmax of gives the classes, or numbers in deviations of the train set."""
        return self._read(need("xgboost", "predict").DMatrix(states_nD))

    def text(self) -> bytes:
        """The trees as XGBoost's own JSON."""
        return bytes(self.booster.save_raw("json"))

    def _read(self, matrix: Any) -> Array:
        margins: Array = self.booster.predict(matrix, output_margin=True).astype(np.float64)
        if self.classes == 2:
            return np.stack((-margins / 2, margins / 2), 1)
        return margins.reshape(len(margins), -1)


def grow(sets: Sets, seed: int, train_nD: Array, valid_nD: Array, judge: Judge) -> Trees:
    """Grow trees on the train set, and keep those up to the round that `judge` finds best; of equals the first."""
    xgboost = need("xgboost", "predict")
    task, settings = sets.task, sets.task.trees
    classes = sets.outputs if task.kind == "classification" else 0
    parameters = {"max_depth": settings.depth, "learning_rate": settings.rate, "seed": seed, "verbosity": 0}
    parameters |= _objective(classes)
    targets = np.asarray(sets.train.targets)
    weights = None if sets.class_weights is None else sets.class_weights[targets]
    if not classes:
        targets = (targets.reshape(len(targets), -1) - sets.scale[0]) / sets.scale[1]
    matrix, held_out = xgboost.DMatrix(train_nD, targets, weight=weights), xgboost.DMatrix(valid_nD)
    booster = xgboost.Booster(parameters, [matrix, held_out])
    best, kept = -np.inf, 0
    for number in range(settings.rounds):
        booster.update(matrix, number)
        value = judge([*Trees(booster, {}, classes)._read(held_out)])
        if value > best or not kept:
            best, kept = value, number + 1
        elif number + 1 - kept >= settings.patience:
            break
    return Trees(booster[:kept], {"rounds": kept}, classes)


def _objective(classes: int) -> dict[str, Any]:
    if not classes:
        return {"objective": "reg:squarederror"}
    return {"objective": "binary:logistic"} if classes == 2 else {"objective": "multi:softprob", "num_class": classes}
