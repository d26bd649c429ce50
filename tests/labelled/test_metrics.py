"""Metrics are those of scikit-learn and scipy, and NaN where they cannot be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as judged

from hyena_ds.labelled.metrics import (
    HIGHER_IS_BETTER,
    OF_KIND,
    auroc,
    f1,
    mcc,
    measured,
    ranks,
)
from hyena_ds.labelled.sets import UNLABELLED


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("digits", [1, 9])
def test_metrics_of_classes_are_those_of_scikit_learn(classes: int, digits: int) -> None:
    """With one digit many scores are equal."""
    draw = np.random.default_rng(classes)
    truth = draw.integers(0, classes, 400)
    scores = draw.random((400, classes)) + 0.5 * np.eye(classes)[truth]
    p = np.round(scores / scores.sum(1, keepdims=True), digits)
    guess = p.argmax(1)
    found = measured("classification", truth, p)
    one_hot = np.eye(classes)[truth]
    each = slice(1, 2) if classes == 2 else slice(None)
    assert found == pytest.approx(
        {
            "accuracy": judged.accuracy_score(truth, guess),
            "mcc": judged.matthews_corrcoef(truth, guess),
            "f1": judged.f1_score(truth, guess, average="binary" if classes == 2 else "macro"),
            "f1_macro": judged.f1_score(truth, guess, average="macro"),
            "f1_weighted": judged.f1_score(truth, guess, average="weighted"),
            "auroc": judged.roc_auc_score(one_hot[:, each], p[:, each], average="macro"),
            "auprc": judged.average_precision_score(one_hot[:, each], p[:, each], average="macro"),
        },
        abs=1e-12,
    )


def test_bases_without_a_label_do_not_count() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 300)
    p = draw.dirichlet(np.ones(3), 300)
    masked = np.where(draw.random(300) < 0.4, UNLABELLED, truth).astype(np.int8)
    known = masked != UNLABELLED
    assert measured("per_base", masked, p) == pytest.approx(measured("classification", truth[known], p[known]))
    assert measured("per_base", masked, p)["mcc"] == pytest.approx(
        judged.matthews_corrcoef(truth[known], p.argmax(1)[known])
    )


def test_metrics_of_many_outputs_leave_out_what_was_not_measured() -> None:
    draw = np.random.default_rng(1)
    targets = (draw.random((200, 5)) < 0.3).astype(np.float32)
    scores = draw.random((200, 5)) + 0.4 * targets
    targets[draw.random((200, 5)) < 0.2] = np.nan
    targets[:, 4] = 0  # one class alone: nothing can be said
    areas, precisions = [], []
    for k in range(4):
        known = ~np.isnan(targets[:, k])
        areas.append(judged.roc_auc_score(targets[known, k], scores[known, k]))
        precisions.append(judged.average_precision_score(targets[known, k], scores[known, k]))
    found = measured("multilabel", targets, scores)
    assert found == pytest.approx(
        {
            "median_auroc": np.median(areas),
            "mean_auroc": np.mean(areas),
            "median_auprc": np.median(precisions),
            "mean_auprc": np.mean(precisions),
        }
    )
    assert measured("multilabel", targets[:, 4:], scores[:, 4:]) == pytest.approx(
        dict.fromkeys(found, math.nan), nan_ok=True
    )


def test_metrics_of_values_are_those_of_scipy() -> None:
    draw = np.random.default_rng(2)
    truth = np.round(draw.normal(size=(150, 2)), 1)
    guess = np.round(truth + draw.normal(size=(150, 2)), 1)
    found = measured("regression", truth[:, 0], guess[:, 0])
    assert found == pytest.approx(
        {
            "r2": judged.r2_score(truth[:, 0], guess[:, 0]),
            "pearson": stats.pearsonr(truth[:, 0], guess[:, 0]).statistic,
            "spearman": stats.spearmanr(truth[:, 0], guess[:, 0]).statistic,
            "mse": judged.mean_squared_error(truth[:, 0], guess[:, 0]),
        }
    )
    both = measured("regression", truth, guess)
    assert both["r2"] == pytest.approx(judged.r2_score(truth, guess))
    assert np.array_equal(ranks(truth[:, 0]), stats.rankdata(truth[:, 0]))


def test_what_cannot_be_said_is_nan() -> None:
    ones = np.ones(5, dtype=np.int64)
    assert math.isnan(auroc(ones, np.arange(5.0)))
    assert mcc(ones, ones) == 0.0
    assert f1(ones, np.zeros(5, np.int64), 2, "binary") == 0.0
    flat = measured("regression", np.ones(4), np.arange(4.0))
    assert math.isnan(flat["r2"]) and math.isnan(flat["pearson"]) and flat["mse"] == pytest.approx(1.5)
    none = measured("classification", np.zeros(0, np.int64), np.zeros((0, 2)))
    assert all(map(math.isnan, (none["accuracy"], none["mcc"], none["f1"], none["auroc"])))


def test_every_metric_of_a_kind_has_a_direction() -> None:
    assert {name for names in OF_KIND.values() for name in names} == set(HIGHER_IS_BETTER)
