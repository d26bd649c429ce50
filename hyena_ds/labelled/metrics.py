"""How good predictions are. What cannot be said (one class alone, no spread) is NaN.

n rows, C classes, K outputs; «truth» and «guess» are class indices, «score» is higher where a row is more likely positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.labelled.sets import UNLABELLED

Array = NDArray[Any]


def measured(kind: str, targets: Array, predictions: Array, only: str | None = None) -> dict[str, float]:
    """All metrics of a kind of task, by name; with `only` that one alone.

    classification: (n,) indices and (n, C) probabilities. per_base: the same for the bases, those that are UNLABELLED left out.
    multilabel: (n, K) 0, 1 or NaN, and (n, K) scores. regression: (n,) or (n, K), both; of several outputs the mean of each
    metric.
    """
    if kind == "multilabel":
        return of_outputs(targets, predictions, only)
    if kind == "regression":
        columns = np.reshape(targets, (len(targets), -1)), np.reshape(predictions, (len(targets), -1))
        each = [of_values(truth, found, only) for truth, found in zip(columns[0].T, columns[1].T, strict=True)]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    known = targets != UNLABELLED
    return of_classes(targets[known], predictions[known], only)


def of_classes(truth: Array, probabilities: Array, only: str | None = None) -> dict[str, float]:
    """Metrics of (n, C) probabilities; f1, auroc and auprc are those of class 1 where there are two, else means over classes."""
    guess = probabilities.argmax(1)
    classes = probabilities.shape[1]
    binary = classes == 2

    def mean_of(metric: Callable[[Array, Array], float]) -> float:
        return float(
            np.mean([metric(truth == c, probabilities[:, c]) for c in (range(1, 2) if binary else range(classes))])
        )

    found: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy(truth, guess),
        "mcc": lambda: mcc(truth, guess),
        "f1": lambda: f1(truth, guess, classes, "binary" if binary else "macro"),
        "f1_macro": lambda: f1(truth, guess, classes, "macro"),
        "f1_weighted": lambda: f1(truth, guess, classes, "weighted"),
        "auroc": lambda: mean_of(auroc),
        "auprc": lambda: mean_of(auprc),
    }
    return _called(found, only)


def of_outputs(targets: Array, scores: Array, only: str | None = None) -> dict[str, float]:
    """Metrics of (n, K) scores, each over the outputs for which it can be said."""
    known = ~np.isnan(targets)
    each = [(targets[known[:, k], k] == 1, scores[known[:, k], k]) for k in range(targets.shape[1])]
    each = [(truth, score) for truth, score in each if 0 < np.count_nonzero(truth) < len(truth)]

    @cache
    def areas() -> Array:
        return np.array([auroc(truth, score) for truth, score in each])

    @cache
    def precisions() -> Array:
        return np.array([auprc(truth, score) for truth, score in each])

    found: dict[str, Callable[[], float]] = {
        "median_auroc": lambda: float(np.median(areas())),
        "mean_auroc": lambda: float(np.mean(areas())),
        "median_auprc": lambda: float(np.median(precisions())),
        "mean_auprc": lambda: float(np.mean(precisions())),
    }
    return _called(found if each else {name: lambda: float("nan") for name in found}, only)


def of_values(truth: Array, found: Array, only: str | None = None) -> dict[str, float]:
    """Metrics of (n,) numbers."""
    names: dict[str, Callable[[], float]] = {
        "r2": lambda: r2(truth, found),
        "pearson": lambda: pearson(truth, found),
        "spearman": lambda: spearman(truth, found),
        "mse": lambda: float(np.mean((truth.astype(np.float64) - found) ** 2)),
    }
    return _called(names, only)


def _called(found: Mapping[str, Callable[[], float]], only: str | None) -> dict[str, float]:
    return {name: metric() for name, metric in found.items() if only in (None, name)}


def accuracy(truth: Array, guess: Array) -> float:
    """The share of rows that are right."""
    return float(np.mean(truth == guess)) if len(truth) else float("nan")


def confusion(truth: Array, guess: Array, classes: int) -> NDArray[np.int64]:
    """(C, C) counts: row the truth, column the guess."""
    both = np.bincount(truth.astype(np.int64) * classes + guess, minlength=classes * classes)
    return both.reshape(classes, classes)


def mcc(truth: Array, guess: Array) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 where all guesses, or all truths, are one class."""
    if not len(truth):
        return float("nan")
    table = confusion(truth, guess, 1 + int(max(truth.max(), guess.max()))).astype(np.float64)
    total, true, guessed = table.sum(), table.sum(1), table.sum(0)
    above = np.trace(table) * total - true @ guessed
    below = np.sqrt((total**2 - guessed @ guessed) * (total**2 - true @ true))
    return float(above / below) if below else 0.0


def f1(truth: Array, guess: Array, classes: int, average: str) -> float:
    """F1 of class 1 (`binary`), or its mean over the classes that occur (`macro`), or that mean by their size (`weighted`)."""
    if not len(truth):
        return float("nan")
    table = confusion(truth, guess, classes).astype(np.float64)
    true, guessed = table.sum(1), table.sum(0)
    occurs = true + guessed > 0
    each = np.where(occurs, 2 * np.diag(table) / np.maximum(true + guessed, 1), 0.0)
    if average == "binary":
        return float(each[1])
    return float(each[occurs].mean() if average == "macro" else each @ true / true.sum())


def ranks(values: Array) -> NDArray[np.float64]:
    """The rank of each value from 1; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return found


def auroc(positive: Array, score: Array) -> float:
    """The chance that a positive row has a higher score than a negative one; a tie counts half."""
    positives, total = int(np.count_nonzero(positive)), len(positive)
    negatives = total - positives
    if not positives or not negatives:
        return float("nan")
    above = ranks(score)[positive.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def auprc(positive: Array, score: Array) -> float:
    """Average precision: the mean precision at each positive row, equal scores taken at once."""
    positives = int(np.count_nonzero(positive))
    if not positives or positives == len(positive):
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order].astype(np.int64))
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    precision, recall = hits[ends] / (ends + 1), hits[ends] / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def pearson(truth: Array, found: Array) -> float:
    """The linear correlation."""
    if len(truth) < 2:
        return float("nan")
    x, y = (
        truth.astype(np.float64) - truth.mean(dtype=np.float64),
        found.astype(np.float64) - found.mean(dtype=np.float64),
    )
    below = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / below) if below > 0 else float("nan")


def spearman(truth: Array, found: Array) -> float:
    """The linear correlation of the ranks."""
    return pearson(ranks(truth), ranks(found))


def r2(truth: Array, found: Array) -> float:
    """The share of the variance that is explained; below 0 where the mean would be nearer."""
    x = truth.astype(np.float64)
    spread = np.sum((x - x.mean()) ** 2) if len(x) else 0.0
    return float(1 - np.sum((x - found) ** 2) / spread) if spread > 0 else float("nan")


HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys(("accuracy", "mcc", "f1", "f1_macro", "f1_weighted", "auroc", "auprc"), True),
    **dict.fromkeys(("median_auroc", "mean_auroc", "median_auprc", "mean_auprc"), True),
    **dict.fromkeys(("r2", "pearson", "spearman"), True),
    "mse": False,
}
"""Every metric by its name, and whether a model is better that has more of it."""
OF_KIND: Mapping[str, tuple[str, ...]] = {
    "classification": ("mcc", "accuracy", "f1", "f1_macro", "f1_weighted", "auroc", "auprc"),
    "multilabel": ("median_auroc", "mean_auroc", "median_auprc", "mean_auprc"),
    "regression": ("pearson", "spearman", "r2", "mse"),
    "per_base": ("mcc", "accuracy", "f1", "f1_macro", "f1_weighted", "auroc", "auprc"),
}
"""The metrics of each kind of task, first the one by which a model is chosen if nobody says another."""
