"""Audits a train and a test set before any score on them is believed.

    train, test --equal, near, overlapping sequences--+
                --sequences made from others----------+--> reasons --the worst--> OK, WARN or FAIL
                --row zero: rules without a model-----+
    dev --what it shares with train, and test with it-+

All is done on the letters and labels alone; nothing depends on a set's name. m test sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyena_ds.errors import UserError
from hyena_ds.labelled.metrics import HIGHER_IS_BETTER, OF_KIND
from hyena_ds.labelled.sets import LabelledSet
from hyena_ds.suites import judge
from hyena_ds.suites import thresholds as at
from hyena_ds.suites.judge import Reason
from hyena_ds.suites.kmers import Joined
from hyena_ds.suites.made import Made, find_made
from hyena_ds.suites.row_zero import Rule, row_zero, skill_on, true_targets, wrong
from hyena_ds.suites.shared import (
    Duplicates,
    Flags,
    Nearest,
    Shared,
    Sketches,
    Twins,
    find_duplicates,
    find_shared,
    find_twins,
)
from hyena_ds.suites.thresholds import LEVELS, Verdict


@dataclass(frozen=True)
class Dev:
    """What the set on which a model is chosen shares with the others."""

    rows: int
    class_rows: tuple[int, ...]
    """Sequences of each class; empty for other kinds."""
    lengths: tuple[int, int, int]
    """Shortest, median and longest."""
    in_train: Shared
    """Its sequences that train has."""
    test_in_it: Shared
    """Sequences of test that it has."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        sides = {"dev_in_train": self.in_train, "test_in_dev": self.test_in_it}
        return {
            "sequences": self.rows,
            **{
                name: {
                    "exact": _count(one.equal & ~one.reverse),
                    "reverse_complement": _count(one.reverse),
                    "twins": _count(one.twin),
                    "near": _count(one.near),
                }
                for name, one in sides.items()
            },
        }


@dataclass(frozen=True)
class Audit:
    """What was found, and what it amounts to."""

    kind: str
    rows: tuple[int, int]
    """Sequences of train and of test."""
    classes: tuple[str, ...]
    class_rows: tuple[tuple[int, ...], tuple[int, ...]]
    """Sequences of each class in train and in test; empty for other kinds."""
    lengths: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Shortest, median and longest of train and of test."""
    duplicates: Duplicates
    nearest: Nearest
    twins: Twins
    made: tuple[Made, ...]
    row_zero: tuple[Rule, ...]
    easy: float
    """The best skill of composition on the test sequences that share nothing with train."""
    reasons: tuple[Reason, ...]
    dev: Dev | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst level of the reasons."""
        return max((reason.level for reason in self.reasons), key=LEVELS.index, default="OK")

    @property
    def share_nothing(self) -> Flags:
        """(m): test sequences without duplicate, near sequence or twin in train."""
        return _apart(self.duplicates, self.nearest, self.twins)

    def best(self, metric: str | None = None) -> Rule:
        """The rule that is best on the test set by a metric (default: the first of its kind): an upper bound for all."""
        name = metric or OF_KIND[self.kind][0]
        sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
        return max(
            self.row_zero, key=lambda rule: -np.inf if np.isnan(rule.metrics[name]) else sign * rule.metrics[name]
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON; NaN is None."""
        duplicates, nearest, twins = self.duplicates, self.nearest, self.twins
        return {
            "verdict": self.verdict,
            "reasons": [{"level": one.level, "text": one.text} for one in self.reasons],
            "kind": self.kind,
            "train": self._side(0),
            "test": self._side(1),
            "classes": list(self.classes),
            **({} if self.dev is None else {"dev": self.dev.as_dict()}),
            "duplicates": {
                "exact": _count(duplicates.exact),
                "reverse_complement": _count(duplicates.reverse),
                "within_train": duplicates.within_train,
                "within_test": duplicates.within_test,
                "conflicting_labels": duplicates.conflicting,
                "examples": [list(pair) for pair in duplicates.examples],
            },
            "near": {
                "share": _percentiles(nearest),
                "test": _count(nearest.near),
                "within_train": nearest.near_train,
                "within_test": nearest.near_test,
                "k": nearest.k,
                "one_in": nearest.kept,
            },
            "twins": {
                "places_known": twins.known,
                "same_label": _count(twins.same_label),
                "other_label": _count(twins.other_label),
                "test": _count(twins.any_label),
                "overlap_without_shared_sequence": twins.unlike,
                "examples": [list(pair) for pair in twins.examples],
            },
            "made": [
                {"how": one.how, "class": self.classes[one.of], "share": one.share, "pairs": len(one.pairs)}
                for one in self.made
            ],
            "easy": self.easy,
            "row_zero": [
                {
                    "rule": one.name,
                    "family": one.family,
                    "chosen": one.chosen,
                    **{name: None if np.isnan(value) else value for name, value in one.metrics.items()},
                }
                for one in self.row_zero
            ],
            "best": self.best().name,
            "thresholds": {name: value for name, value in vars(at).items() if name.isupper()},
        }

    def _side(self, side: int) -> dict[str, Any]:
        counts = dict(zip(self.classes, self.class_rows[side], strict=False))
        return {"sequences": self.rows[side], "classes": counts, "shortest_median_longest": list(self.lengths[side])}


def audit(train: LabelledSet, test: LabelledSet, dev: LabelledSet | None = None) -> Audit:
    """Audit two sets of the same classes or outputs, and the one on which a model is chosen, where there is one.

    Raises UserError where they are not, or a set is too small.
    """
    _check(train, test)
    held_out = None
    if dev is not None:
        _check(train, dev, "dev")
        of_train, of_test = find_shared(train, dev), find_shared(dev, test)
        held_out = Dev(len(dev), _class_rows(dev), _lengths(dev), of_train, of_test)
    kind = train.kind
    duplicates = find_duplicates(train, test)
    sketches = Sketches(Joined.of(train.sequences), Joined.of(test.sequences))
    nearest, twins = sketches.nearest(), find_twins(train, test, sketches)
    made: list[Made] = []
    if kind == "classification":
        labels = np.concatenate([np.asarray(train.targets), np.asarray(test.targets)])
        made = find_made(Joined.of(train.sequences + test.sequences), labels)
    rules = row_zero(train, test, nearest, made)
    truth, apart = true_targets(test), _apart(duplicates, nearest, twins)
    composition = [rule for rule in rules if rule.family == "composition"]
    easy = max(skill_on(kind, rule, truth, apart) for rule in composition)
    easy = easy if judge.reaches(easy, 0.0, int(np.count_nonzero(apart))) else 0.0
    reasons = [
        *judge.of_duplicates(duplicates, len(train), len(test)),
        *judge.of_twins(twins, easy, wrong(test, judge.best_composition(rules))),
        *judge.of_near(nearest, duplicates.exact | duplicates.reverse | twins.any_label),
        *judge.of_made(made, train.classes),
        *judge.of_rules(rules, easy, len(test)),
        *(judge.of_dev(held_out.test_in_it, held_out.in_train) if held_out is not None else ()),
    ]
    return Audit(
        kind,
        (len(train), len(test)),
        train.classes,
        (_class_rows(train), _class_rows(test)),
        (_lengths(train), _lengths(test)),
        duplicates,
        nearest,
        twins,
        tuple(made),
        tuple(rules),
        easy,
        tuple(sorted(reasons, key=lambda reason: -LEVELS.index(reason.level))),
        held_out,
    )


def _check(train: LabelledSet, other: LabelledSet, what: str = "test") -> None:
    if train.kind != other.kind or train.classes != other.classes:
        raise UserError(
            f"audit: found a train and a {what} set of other kinds or classes, wanted the same; read both alike"
        )
    for name, data in (("train", train), (what, other)):
        if len(data) < 2:
            raise UserError(f"audit: found {len(data)} sequences to {name} on, wanted two or more")


def _apart(duplicates: Duplicates, nearest: Nearest, twins: Twins) -> Flags:
    return ~(duplicates.exact | duplicates.reverse | nearest.near | twins.any_label)


def _count(flags: Flags) -> int:
    return int(np.count_nonzero(flags))


def _percentiles(nearest: Nearest) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(nearest.share, p)) for p in (50, 90, 99)}


def _class_rows(data: LabelledSet) -> tuple[int, ...]:
    if data.kind != "classification":
        return ()
    return tuple(np.bincount(np.asarray(data.targets), minlength=len(data.classes)).tolist())


def _lengths(data: LabelledSet) -> tuple[int, int, int]:
    found = np.array([len(text) for text in data.sequences])
    return int(found.min()), int(np.median(found)), int(found.max())
