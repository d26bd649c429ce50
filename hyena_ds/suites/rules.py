"""Rules without a model that guess a class: what a model has to beat.

    train sequences --k-mers of a validation split of them choose k, order--> rule --test sequences--> (m, C) probabilities

n train sequences, m test sequences, C classes, k letters of a k-mer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hyena_ds.errors import UserError, need
from hyena_ds.labelled.metrics import mcc
from hyena_ds.labelled.sets import LabelledSet
from hyena_ds.labelled.splitting import validation_split
from hyena_ds.suites.kmers import Counts, Integers, Joined, counts_of, mixed

Scores = NDArray[np.float64]

MOST_BASES = 1 << 24
"""Train bases that k-mer rules learn from; of a larger set a part is drawn."""
LETTERS = (3, 4, 5, 6)
"""k of the k-mers of a regression."""
ORDERS = (0, 1, 2, 3, 4, 5, 6)
"""Orders of Markov models."""
_FEW_LETTERS = 4
"""The only k tried where there are many classes."""
_MANY_CLASSES = 20
_MOST_PLACES = 2000
"""Longest sequence of which bases in place are looked at."""
_MOST_ITERATIONS = 100
_SHARE = 0.2
"""Share of train: what chooses k, orders and the like."""


class Learner:
    """The train set as rules learn from it, and the split of it that chooses between them."""

    def __init__(self, train: LabelledSet):
        """Draws a part of a train set that is too large, the same at every call."""
        lengths = np.array([len(text) for text in train.sequences], dtype=np.int64)
        drawn = np.argsort(mixed(np.arange(len(train), dtype=np.uint64)), kind="stable")
        enough = max(2, int(np.searchsorted(np.cumsum(lengths[drawn]), MOST_BASES, "right")))
        self.data = train if enough >= len(train) else train.take(np.sort(drawn[:enough]))
        self.targets: NDArray[Any] = (
            np.asarray(self.data.targets) if isinstance(train.targets, np.ndarray) else np.empty(0)
        )
        self.classes = len(train.classes)
        self.joined = Joined.of(self.data.sequences)
        self._counts: dict[int, Counts] = {}

    @cached_property
    def split(self) -> tuple[Integers, Integers] | None:
        """(rows to fit, rows to choose by); None where the set is too small to be split."""
        try:
            return validation_split(self.data, _SHARE, seed=0)
        except UserError:
            return None

    def counts(self, k: int) -> Counts:
        """(n, 4^k). Those of one k are kept."""
        if k not in self._counts:
            self._counts.clear()
            self._counts[k] = counts_of(self.joined, k)
        return self._counts[k]

    @property
    def prior(self) -> Scores:
        """(C) shares of the classes."""
        found: Scores = np.bincount(self.targets, minlength=self.classes) / max(1, len(self.targets))
        return found

    def best_of(self, options: Sequence[int], skill: Callable[[int, Integers, Integers], float], default: int) -> int:
        """The option of most skill on the split; the first of equal ones, and `default` where there is no split."""
        if self.split is None:
            return default
        fit, choose = self.split
        return max(options, key=lambda option: skill(option, fit, choose))


def in_chunks(joined: Joined, k: int, judge: Callable[[Counts], NDArray[Any]]) -> NDArray[Any]:
    """What `judge` says of the k-mer counts of all sequences, a part of them in memory at a time."""
    found = [judge(counts_of(joined.part(first, last), k)) for first, last in joined.chunks()]
    return np.concatenate(found)


def majority(learner: Learner, test: Joined) -> Scores:
    """The shares of the classes, whatever the sequence."""
    return np.tile(learner.prior, (len(test), 1))


def lengths_of(joined: Joined) -> Scores:
    """(n, 2): bases, and the share of N."""
    unknown = (
        np.add.reduceat((joined.codes > 3).astype(np.int64), joined.starts[:-1]) - 1
    )  # the gap behind each counts as one
    return np.column_stack([joined.lengths, unknown / joined.lengths]).astype(np.float64)


def compositions_of(joined: Joined) -> Scores:
    """(n, 2): the share of G and C, and how many CpG there are of those expected."""
    single = in_chunks(joined, 1, lambda counts: counts.toarray()).astype(np.float64)
    double = in_chunks(joined, 2, lambda counts: counts.toarray()).astype(np.float64)
    total = np.maximum(single.sum(1), 1)
    expected = np.maximum(single[:, 1] * single[:, 2] / total, 1e-9)
    return np.column_stack([(single[:, 1] + single[:, 2]) / total, np.minimum(double[:, 6] / expected, 10.0)])


def tree(learner: Learner, test: Joined, features: Callable[[Joined], Scores], regress: bool = False) -> Scores:
    """A decision tree of few leaves on a few numbers about each sequence: (m, C) shares, or (m) values with `regress`."""
    trees = need("sklearn.tree", "predict")
    least = max(2, min(20, len(learner.data) // 100))
    kind = trees.DecisionTreeRegressor if regress else trees.DecisionTreeClassifier
    fitted = kind(max_leaf_nodes=8, min_samples_leaf=least, random_state=0).fit(
        features(learner.joined), learner.targets
    )
    if regress:
        values: Scores = fitted.predict(features(test))
        return values
    return _all_classes(fitted, fitted.predict_proba(features(test)), learner.classes)


def regression(learner: Learner, test: Joined) -> tuple[Scores, str]:
    """Logistic regression on the roots of k-mer frequencies, k chosen; and what was chosen."""
    options = LETTERS if learner.classes <= _MANY_CLASSES else (_FEW_LETTERS,)

    def fitted(k: int, rows: Integers) -> Callable[[Counts], Scores]:
        model = need("sklearn.linear_model", "predict")
        features, targets = _frequencies(learner.counts(k)[rows]), learner.targets[rows]
        mean = np.asarray(features.mean(0)).ravel()
        spread = np.asarray(features.multiply(features).mean(0)).ravel() - mean**2
        scale = sparse.diags(1 / np.sqrt(np.maximum(spread, 1e-9)))
        # As strong a prior for all k: the sum of squares of a row grows with the number of k-mers.
        found = model.LogisticRegression(C=2.56 / 4**k, max_iter=_MOST_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has come far enough for a baseline
            found.fit(features @ scale, targets)
        return lambda counts: _all_classes(found, found.predict_proba(_frequencies(counts) @ scale), learner.classes)

    def skill(k: int, fit: Integers, choose: Integers) -> float:
        return mcc(learner.targets[choose], fitted(k, fit)(learner.counts(k)[choose]).argmax(1))

    k = learner.best_of(options, skill, _FEW_LETTERS)
    return in_chunks(test, k, fitted(k, np.arange(len(learner.data)))), f"k {k}"


def markov(learner: Learner, test: Joined) -> tuple[Scores, str]:
    """A Markov model of each class, of one order, chosen, and their shares by Bayes; and what was chosen."""

    def fitted(order: int, rows: Integers) -> Callable[[Counts], Scores]:
        counts, targets = learner.counts(order + 1)[rows], learner.targets[rows]
        logs = np.empty((learner.classes, 4 ** (order + 1)))
        for number in range(learner.classes):
            seen = 1.0 + np.asarray(counts[targets == number].sum(0)).reshape(-1, 4)
            logs[number] = np.log(seen / seen.sum(1, keepdims=True)).ravel()
        prior = np.log(np.maximum(np.bincount(targets, minlength=learner.classes) / len(targets), 1e-12))
        return lambda found: _softmax(found @ logs.T + prior)

    def skill(order: int, fit: Integers, choose: Integers) -> float:
        return mcc(learner.targets[choose], fitted(order, fit)(learner.counts(order + 1)[choose]).argmax(1))

    order = learner.best_of(ORDERS, skill, 3)
    return in_chunks(test, order + 1, fitted(order, np.arange(len(learner.data)))), f"order {order}"


def places(learner: Learner, test: Joined) -> Scores | None:
    """The frequencies of bases at each place by class, and Bayes; None unless nearly all sequences have one length."""
    length = int(np.median(learner.joined.lengths))
    alike = [float(np.mean(joined.lengths == length)) for joined in (learner.joined, test)]
    if min(alike) < 0.95 or length > _MOST_PLACES:
        return None
    train = _at(learner.joined, length)
    logs = np.empty((learner.classes, 5, length))
    for number in range(learner.classes):
        some = train[learner.targets == number]
        seen = 1.0 + np.stack([np.count_nonzero(some == code, axis=0) for code in range(4)])
        logs[number, :4] = np.log(seen / seen.sum(0))
        logs[number, 4] = 0.0
    found = np.empty((len(test), learner.classes))
    for first, last in test.chunks():
        codes = _at(test.part(first, last), length)
        for number in range(learner.classes):
            found[first:last, number] = logs[number][codes, np.arange(length)].sum(1)
    return _softmax(found + np.log(np.maximum(learner.prior, 1e-12)))


def looked_up(prior: Scores, labels: NDArray[np.int64], row: Integers, share: Scores) -> Scores:
    """(m, C): the label of the nearest train sequence, surer the more it shares; the prior where nothing is shared."""
    found = np.tile(prior, (len(row), 1))
    there = np.flatnonzero(row >= 0)
    weight = 0.5 + 0.5 * np.minimum(share[there], 1.0)
    found[there] *= (1 - weight)[:, None]
    found[there, labels[row[there]]] += weight
    return found


def from_partners(labels: NDArray[np.int64], partners: dict[int, list[int]], else_: Scores) -> Scores:
    """(m, C): what partners' labels say by what partners within train say of each other; `else_` where there are none.

    Rows from n on are test sequences, `labels` those of train.
    """
    n, classes = len(labels), else_.shape[1]
    known = {row: labels[[other for other in others if other < n]] for row, others in partners.items()}
    table = np.full((classes, classes), 1e-3)
    for row, theirs in known.items():
        if row < n and len(theirs):  # each row counts once: a family of repeats has many pairs
            table[:, labels[row]] += np.bincount(theirs, minlength=classes) / len(theirs)
    table /= table.sum(1, keepdims=True)
    found = else_.copy()
    for row in range(len(else_)):
        theirs = known.get(n + row, labels[:0])
        if len(theirs):
            found[row] = table[theirs].mean(0)
    return found


def _frequencies(counts: Counts) -> Counts:
    """Roots of the shares of k-mers."""
    total = np.maximum(1.0, np.asarray(counts.sum(1)).ravel())
    return (sparse.diags(1 / total) @ counts).sqrt()


def _at(joined: Joined, length: int) -> NDArray[np.uint8]:
    """(n, length) codes; what is missing of a shorter sequence is unknown."""
    index = np.minimum(joined.starts[:-1, None] + np.arange(length), joined.starts[1:, None] - 1)
    return joined.codes[index]


def _softmax(logs: Scores) -> Scores:
    found = np.exp(logs - logs.max(1, keepdims=True))
    shares: Scores = found / found.sum(1, keepdims=True)
    return shares


def _all_classes(fitted: Any, shares: Scores, classes: int) -> Scores:
    """Shares of all classes, also of those that no row of train has."""
    found = np.zeros((len(shares), classes))
    found[:, fitted.classes_] = shares
    return found
