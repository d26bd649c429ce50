"""From what an audit found to reasons, each with its level, by the thresholds of one file.

m test sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyena_ds.suites import thresholds as at
from hyena_ds.suites.made import Made
from hyena_ds.suites.row_zero import LENGTH, Rule
from hyena_ds.suites.shared import Duplicates, Flags, Nearest, Shared, Twins
from hyena_ds.suites.thresholds import Verdict

_METRICS = {"mcc": "MCC", "pearson": "Pearson", "median_auroc": "median AUROC"}
"""What is said of a rule: the metric that its skill comes from."""


@dataclass(frozen=True)
class Reason:
    """One thing that speaks against a set."""

    level: Verdict
    text: str


def of_duplicates(found: Duplicates, train: int, test: int) -> Iterator[Reason]:
    """`train` and `test` are numbers of sequences."""
    count, reverse = int(np.count_nonzero(found.exact | found.reverse)), int(np.count_nonzero(found.reverse))
    if count:
        also = f", {reverse:,} of them on the other strand" if reverse else ""
        text = f"{share(count, test)} of the test sequences are in train{also}"
        yield Reason("FAIL" if count > at.DUPLICATES * test else "WARN", text)
    for name, inside, rows in (("train", found.within_train, train), ("test", found.within_test, test)):
        if inside > at.WITHIN * rows:
            yield Reason(
                "WARN", f"{share(inside, rows)} of the {name} sequences stand in {name} before, on either strand"
            )
    if found.conflicting > at.CONFLICTS * (train + test):
        text = f"{share(found.conflicting, train + test)} of all sequences have another label elsewhere"
        yield Reason("WARN", text)


def of_twins(found: Twins, easy: float, missed: Flags) -> Iterator[Reason]:
    """`easy` is the skill of composition where nothing is shared, `missed` (m) where its best rule errs."""
    count, test = int(np.count_nonzero(found.any_label)), len(found.same_label)
    if not count:
        return
    same, other = np.count_nonzero(found.same_label), np.count_nonzero(found.other_label)
    text = (
        f"{share(count, test)} of the test sequences overlap one of train by half or more ({same:,} of the same label, "
    )
    text += f"{other:,} of another)"
    counted = count
    if easy >= at.EASY:
        counted = int(np.count_nonzero(found.any_label & missed))
        text += f"; the task is easy, and composition is wrong about {counted:,} of them"
    yield Reason("FAIL" if counted > at.TWINS * test else "WARN", text)


def of_near(found: Nearest, said: Flags) -> Iterator[Reason]:
    """`said` (m) are the test sequences that are duplicates or known twins: they are judged as such."""
    alone, test = int(np.count_nonzero(found.near & ~said)), len(said)
    if alone > at.NEAR_WARN * test:
        besides = " besides" if said.any() else ""
        text = f"{share(alone, test)} of the test sequences{besides} share half or more of their {found.k}-mers with one of train"
        yield Reason("FAIL" if alone > at.NEAR_FAIL * test else "WARN", text)


def of_dev(of_test: Shared, of_dev: Shared) -> Iterator[Reason]:
    """What test shares with dev, and dev with train: a model is chosen on dev, which then is part of test, or of train."""
    sides: tuple[tuple[Shared, str, str, Verdict], ...] = (
        (of_test, "test", "dev, on which a model is chosen", "FAIL"),
        (of_dev, "dev", "train, so that a model is chosen that has learnt train by heart", "WARN"),
    )
    for found, name, where, level in sides:
        rows, count = len(found.equal), int(np.count_nonzero(found.equal))
        if count > at.DUPLICATES * rows:
            yield Reason(level, f"{share(count, rows)} of the {name} sequences are in {where}")
        elif count and level == "FAIL":
            yield Reason("WARN", f"{share(count, rows)} of the {name} sequences are in {where}")
        other = where.partition(",")[0]
        for flags, threshold, how in (
            (found.twin & ~found.equal, at.TWINS, f"overlap one of {other} by half or more"),
            (
                found.near & ~found.twin & ~found.equal,
                at.NEAR_WARN,
                f"share half or more of their {found.k}-mers with one of {other}",
            ),
        ):
            alike = int(np.count_nonzero(flags))
            if alike > threshold * rows:
                yield Reason("WARN", f"{share(alike, rows)} of the {name} sequences{' besides' if count else ''} {how}")


def of_made(found: Sequence[Made], classes: Sequence[str]) -> Iterator[Reason]:
    """Sequences of one class that were made from another's."""
    for one in found:
        if one.found:
            text = (
                f"{one.share:.0%} of the class '{classes[one.of]}' pair with another class by {one.how}: one was made "
            )
            yield Reason("FAIL", text + "from the other")


def of_rules(rules: Sequence[Rule], easy: float, test: int) -> Iterator[Reason]:
    """What rules without a model reach on `test` sequences."""
    composition = best_composition(rules)
    for rule in rules:
        if rule.family == "nuisance" and reaches(rule.skill, at.NUISANCE, test):
            below = easy >= at.EASY and rule.skill <= composition.skill and rule.name != LENGTH
            yield Reason("WARN" if below else "FAIL", f"the rule «{rule.name}» alone reaches {_said(rule)}")
    if reaches(composition.skill, at.COMPOSITION, test):
        name = f"{composition.name}, {composition.chosen}" if composition.chosen else composition.name
        easily = "; the task is easy also without what train shares" if easy >= at.EASY else ""
        yield Reason("WARN", f"composition alone ({name}) reaches {_said(composition)}{easily}")


def best_composition(rules: Sequence[Rule]) -> Rule:
    """The rule of most skill among those that look at composition."""
    return max((rule for rule in rules if rule.family == "composition"), key=lambda rule: rule.skill)


def reaches(skill: float, level: float, rows: int) -> bool:
    """Whether a skill on so many test sequences is as high as a level, and beyond chance."""
    return skill >= max(level, at.BEYOND_CHANCE / max(1, rows) ** 0.5)


def share(count: int, total: int) -> str:
    """A count, and its share of a total."""
    return f"{count:,} ({count / total:.1%})"


def _said(rule: Rule) -> str:
    name = next(name for name in _METRICS if name in rule.metrics)
    return f"{_METRICS[name]} {rule.metrics[name]:.3f}"
