"""Row zero of a table of models: the rules without a model, and what they reach on the test set.

m test sequences, C classes, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyena_ds.labelled.metrics import measured
from hyena_ds.labelled.sets import LabelledSet
from hyena_ds.suites import rules, values
from hyena_ds.suites.kmers import Joined
from hyena_ds.suites.made import Made, partners
from hyena_ds.suites.rules import Learner, Scores
from hyena_ds.suites.shared import Nearest

Family = Literal["chance", "nuisance", "composition", "made"]
"""What a rule uses: nothing; what says nothing about biology (length, a look-up); composition; how sequences were made."""


LENGTH = "length and N"


@dataclass(frozen=True)
class Rule:
    """A rule, fitted on train, and its predictions of the test set."""

    name: str
    family: Family
    chosen: str
    """What a validation split of train chose: `k 5`, `order 3`, or nothing."""
    predictions: Scores
    """(m, C) shares of classes, (m, K) values, or for every base (bases, C)."""
    metrics: dict[str, float]
    skill: float
    """0 for chance, 1 for all right: see thresholds."""


def row_zero(train: LabelledSet, test: LabelledSet, nearest: Nearest, made: list[Made]) -> list[Rule]:
    """All rules for the kind of the sets, the simplest first."""
    kind = train.kind
    truth = true_targets(test)
    if kind == "per_base":
        found = values.base_rules(train, test)
        families: tuple[Family, ...] = ("chance", "composition")
        return [_rule(kind, truth, *one, family) for one, family in zip(found, families, strict=True)]
    learner, joined = Learner(train), Joined.of(test.sequences)
    of = _of_classes if kind == "classification" else _of_values
    found_rules = of(learner, joined, train, nearest)
    rows = [_rule(kind, truth, name, chosen, scores, family) for name, family, scores, chosen in found_rules]
    if kind == "classification":
        rows += [_made_rule(train, truth, one, rows) for one in made if one.found]
    return rows


Found = list[tuple[str, Family, Scores, str]]
"""Name, family, predictions, and what was chosen."""


def _of_classes(learner: Learner, joined: Joined, train: LabelledSet, nearest: Nearest) -> Found:
    labels = np.asarray(train.targets)
    found: Found = [
        ("majority", "chance", rules.majority(learner, joined), ""),
        (LENGTH, "nuisance", rules.tree(learner, joined, rules.lengths_of), ""),
        ("GC and CpG", "composition", rules.tree(learner, joined, rules.compositions_of), ""),
        ("nearest train sequence", "nuisance", rules.looked_up(learner.prior, labels, nearest.row, nearest.share), ""),
        ("Markov", "composition", *rules.markov(learner, joined)),
        ("k-mers", "composition", *rules.regression(learner, joined)),
    ]
    in_place = rules.places(learner, joined)
    if in_place is not None:
        found.append(("bases in place", "composition", in_place, ""))
    return found


def _of_values(learner: Learner, joined: Joined, train: LabelledSet, nearest: Nearest) -> Found:
    mean = values.means(learner, joined)
    outputs = values.outputs_of(np.asarray(train.targets))
    features: dict[str, tuple[Family, Callable[[Joined], Scores]]] = {
        LENGTH: ("nuisance", rules.lengths_of),
        "GC and CpG": ("composition", rules.compositions_of),
    }
    found: Found = [("mean", "chance", mean, "")]
    if outputs.shape[1] == 1:
        for name, (family, of) in features.items():
            found.append((name, family, rules.tree(learner, joined, of, regress=True)[:, None], ""))
    found.append(("nearest train sequence", "nuisance", values.looked_up_values(mean, outputs, nearest.row), ""))
    found.append(("ridge on k-mers", "composition", *values.ridge(learner, joined)))
    return found


def _made_rule(train: LabelledSet, truth: NDArray[np.generic], made: Made, rows: list[Rule]) -> Rule:
    """What partners say of each test sequence, else the best rule by composition."""
    best = max((row for row in rows if row.family == "composition"), key=lambda row: row.skill)
    labels = np.asarray(train.targets)
    scores = rules.from_partners(labels, partners(made), best.predictions)
    return _rule("classification", truth, f"{made.how}, else {best.name}", best.chosen, scores, "made")


def true_targets(test: LabelledSet) -> NDArray[np.generic]:
    """Targets as predictions have their rows: of all labelled bases for the kind per_base."""
    if isinstance(test.targets, tuple):
        return values.flat_targets(test)
    return test.targets


def _rule(kind: str, truth: NDArray[np.generic], name: str, chosen: str, predictions: Scores, family: Family) -> Rule:
    metrics = measured(kind, truth, predictions)
    return Rule(name, family, chosen, predictions, metrics, values.skill_of(kind, truth, predictions))


def in_groups(
    rule: Rule, test: LabelledSet, groups: Mapping[str, NDArray[np.int64]]
) -> dict[str, dict[str, float | None]]:
    """Metrics of a rule on each group of the outputs of a multilabel set; None where one cannot be said."""
    truth = np.asarray(test.targets)
    found = {name: measured("multilabel", truth[:, of], rule.predictions[:, of]) for name, of in groups.items()}
    return {
        name: {metric: None if np.isnan(value) else value for metric, value in one.items()}
        for name, one in found.items()
    }


def skill_on(kind: str, rule: Rule, truth: NDArray[np.generic], rows: NDArray[np.bool_]) -> float:
    """The skill of a rule on some of the test sequences; 0 where they are too few to say."""
    if kind == "per_base" or np.count_nonzero(rows) < 2:
        return 0.0
    return values.skill_of(kind, truth[rows], rule.predictions[rows])


def wrong(test: LabelledSet, rule: Rule) -> NDArray[np.bool_]:
    """(m) whether the rule errs about a test sequence; where a sequence has no class, it does."""
    if test.kind != "classification":
        return np.ones(len(test), dtype=bool)
    return rule.predictions.argmax(1) != test.targets
