"""Rules without a model that guess numbers, many outputs at once, or the class of every base.

n train sequences, m test sequences, K outputs, C classes, k letters of a k-mer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hyena_ds.labelled.metrics import mcc, measured
from hyena_ds.labelled.sets import UNLABELLED, LabelledSet
from hyena_ds.suites.kmers import Counts, Integers, Joined, words
from hyena_ds.suites.rules import Learner, Scores, in_chunks

_LETTERS = (2, 3, 4, 5)
_AROUND = (1, 3, 5, 7, 9)
"""Letters round a base."""
_PENALTY = 0.01
"""A ridge's, in rows of the set."""


def means(learner: Learner, test: Joined) -> Scores:
    """(m, K): the mean of each output."""
    return np.tile(means_of(outputs_of(learner.targets)), (len(test), 1))


def means_of(outputs: Scores) -> Scores:
    """(K) means of what was measured; 0 of what never was."""
    known = ~np.isnan(outputs)
    found: Scores = np.where(known, outputs, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return found


def outputs_of(targets: NDArray[np.generic]) -> Scores:
    """(n, K)."""
    found: Scores = np.reshape(targets, (len(targets), -1)).astype(np.float64)
    return found


def ridge(learner: Learner, test: Joined) -> tuple[Scores, str]:
    """(m, K): a ridge on the frequencies of k-mers, k chosen; and what was chosen."""
    outputs = outputs_of(learner.targets)
    outputs = np.where(np.isnan(outputs), means_of(outputs), outputs)

    def fitted(k: int, rows: Integers) -> Callable[[Counts], Scores]:
        features = _roots(learner.counts(k)[rows])
        mean, spread = features.mean(0), np.maximum(features.std(0), 1e-6)
        features = (features - mean) / spread
        middle = outputs[rows].mean(0)
        gram = features.T @ features + _PENALTY * len(rows) * np.eye(features.shape[1])
        weights = np.linalg.solve(gram, features.T @ (outputs[rows] - middle))
        return lambda counts: (_roots(counts) - mean) / spread @ weights + middle

    def skill(k: int, fit: Integers, choose: Integers) -> float:
        return skill_of(learner.data.kind, learner.targets[choose], fitted(k, fit)(learner.counts(k)[choose]))

    k = learner.best_of(_LETTERS, skill, 3)
    return in_chunks(test, k, fitted(k, np.arange(len(outputs)))), f"k {k}"


def looked_up_values(learner_mean: Scores, outputs: Scores, row: Integers) -> Scores:
    """(m, K): the outputs of the nearest train sequence; the means where nothing is shared."""
    found = np.where((row >= 0)[:, None], outputs[row], learner_mean)
    return np.where(np.isnan(found), learner_mean, found)


def skill_of(kind: str, targets: NDArray[np.generic], predictions: Scores) -> float:
    """0 for chance, 1 for all right, whatever the kind; 0 where it cannot be said."""
    found = measured(kind, targets, predictions)
    if kind == "multilabel":
        skill = 2 * found["median_auroc"] - 1
    else:
        skill = found["pearson" if kind == "regression" else "mcc"]
    return 0.0 if np.isnan(skill) else skill


def base_rules(train: LabelledSet, test: LabelledSet) -> list[tuple[str, str, Scores]]:
    """(name, what was chosen, (bases of all test sequences, C) shares) of the majority and of the letters round a base."""
    learner = Learner(train)
    classes = len(train.classes)
    targets = flat_targets(learner.data)
    split = learner.split
    chosen = 5
    if split is not None:
        parts = [learner.data.take(rows) for rows in split]
        tried = {}
        for letters in _AROUND:
            table = _table(Joined.of(parts[0].sequences), flat_targets(parts[0]), letters, classes)
            truth = flat_targets(parts[1])
            known = truth != UNLABELLED
            guess = table[_around(Joined.of(parts[1].sequences), letters)].argmax(1)
            tried[letters] = mcc(truth[known], guess[known])
        chosen = max(tried, key=lambda letters: tried[letters])
    joined = Joined.of(test.sequences)
    table = _table(learner.joined, targets, chosen, classes)
    at = _around(joined, chosen)
    prior = table[-1]
    return [("majority", "", np.tile(prior, (len(at), 1))), ("letters round the base", f"k {chosen}", table[at])]


def flat_targets(data: LabelledSet) -> NDArray[np.int8]:
    """Targets of all bases, as `base_rules` numbers them: with one that is UNLABELLED behind each sequence."""
    gap = np.array([UNLABELLED], dtype=np.int8)
    return np.concatenate([piece for target in data.targets for piece in (target, gap)])


def _around(joined: Joined, letters: int) -> Integers:
    """The k-mer in the middle of which each base stands; 4^k where it has an unknown letter or reaches beyond the ends."""
    found, known = words(joined.codes, letters)
    middle = np.full(len(joined.codes), 4**letters, dtype=np.int64)
    middle[letters // 2 : letters // 2 + len(found)] = np.where(known, found.astype(np.int64), 4**letters)
    return middle


def _table(joined: Joined, targets: NDArray[np.int8], letters: int, classes: int) -> Scores:
    """(4^k + 1, C) shares of the classes behind each k-mer; the last row is that of all bases."""
    known = targets != UNLABELLED
    key = _around(joined, letters)[known] * classes + targets[known]
    seen = np.bincount(key, minlength=(4**letters + 1) * classes).reshape(-1, classes).astype(np.float64)
    prior = seen.sum(0) / max(1.0, seen.sum())
    table: Scores = (seen + prior) / (seen.sum(1, keepdims=True) + 1)
    table[-1] = prior
    return table


def _roots(counts: Counts) -> Scores:
    found = counts.toarray().astype(np.float64)
    roots: Scores = np.sqrt(found / np.maximum(1.0, found.sum(1, keepdims=True)))
    return roots
