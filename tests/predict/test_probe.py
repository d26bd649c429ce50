"""A probe of several outputs: one balanced regression of scikit-learn each, on the rows where it was measured."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hyena_ds.config.task import TaskConfig
from hyena_ds.labelled import LabelledSet
from hyena_ds.predict.probe import _fitted
from hyena_ds.tasks.labelled_sets import Sets


@pytest.mark.parametrize("balance", ["none", "balanced"])
def test_outputs_of_a_probe_are_regressions_of_their_own(balance: str) -> None:
    draw = np.random.default_rng(2)
    states = draw.normal(size=(200, 4)) * [1, 5, 0.2, 1] + 3
    targets = (states[:, :2] + draw.normal(size=(200, 2)) > [4, 10]).astype(np.float32)
    targets[::9, 1] = np.nan
    names = tuple(map(str, range(200)))
    data = LabelledSet(("ACGT",) * 200, targets, ("one", "other"), names, (None,) * 200)
    task = TaskConfig("multilabel", "train.csv", frozen="probe", class_weights=balance)
    found = _fitted(task, Sets(task, data, data, data), states, 0.1).outputs(states)
    scaled = (states - states.mean(0)) / states.std(0)
    weight = None if balance == "none" else "balanced"
    for k in range(2):
        known = ~np.isnan(targets[:, k])
        alone = LogisticRegression(C=0.1, max_iter=2000, class_weight=weight).fit(scaled[known], targets[known, k])
        assert found[:, k] == pytest.approx(alone.decision_function(scaled), abs=1e-6)
    assert (targets[:, 0].mean() < 0.4) and (abs((found[:, 0] > 0).mean() - 0.4) < 0.1) == (balance == "balanced")
