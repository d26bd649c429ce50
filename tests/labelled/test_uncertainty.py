"""The bootstrap's standard errors are those that formulas give, and count sequences, not bases."""

from __future__ import annotations

import numpy as np
import pytest

from hyena_ds.labelled.uncertainty import standard_error


def test_the_standard_error_of_an_accuracy_and_a_correlation_is_the_formula_s() -> None:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 2, 1000)
    right = draw.random(1000) < 0.8
    p = np.eye(2)[np.where(right, truth, 1 - truth)]
    share = right.mean()
    assert standard_error("classification", "accuracy", truth, p) == pytest.approx(
        (share * (1 - share) / 1000) ** 0.5, rel=0.15
    )
    x = draw.normal(size=1000)
    y = 0.6 * x + 0.8 * draw.normal(size=1000)
    r = np.corrcoef(x, y)[0, 1]
    assert standard_error("regression", "pearson", x, y) == pytest.approx((1 - r**2) / 1000**0.5, rel=0.15)


def test_the_standard_error_of_an_area_is_hanley_s_and_mcneil_s() -> None:
    draw = np.random.default_rng(2)
    truth = draw.integers(0, 2, (500, 1)).astype(np.float32)
    scores = draw.exponential(1 + 2 * truth)  # exponential scores are those that their formula is exact for
    a, ones = 0.75, float(truth.sum())
    zeros, q1, q2 = 500 - ones, a / (2 - a), 2 * a * a / (1 + a)
    wanted = ((a * (1 - a) + (ones - 1) * (q1 - a * a) + (zeros - 1) * (q2 - a * a)) / (ones * zeros)) ** 0.5
    assert standard_error("multilabel", "median_auroc", truth, scores) == pytest.approx(wanted, rel=0.2)


def test_bases_of_one_sequence_are_no_sample_of_their_own() -> None:
    right = np.arange(400) % 4 > 0
    targets = tuple(np.ones(50, dtype=np.int8) for _ in right)
    predictions = [np.tile([0.0, 1.0] if one else [1.0, 0.0], (50, 1)) for one in right]
    found = standard_error("per_base", "accuracy", targets, predictions)
    assert found == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.15)


def test_nothing_is_said_of_one_sequence_or_one_class() -> None:
    assert np.isnan(standard_error("classification", "accuracy", np.array([1]), np.eye(2)[:1]))
    assert np.isnan(standard_error("classification", "auroc", np.zeros(9, dtype=np.int64), np.full((9, 2), 0.5)))
