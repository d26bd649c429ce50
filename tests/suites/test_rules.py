"""Rules without a model are what their definition says, computed another way, and look at no test label."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.suites import rules, values
from hyena_ds.suites.kmers import Joined
from hyena_ds.suites.made import find_made, in_place, partners
from hyena_ds.suites.rules import Learner
from tests.suites.drawn import halves, labelled, sequences

TRAIN = [*sequences(60, 1, 40, gc=0.3), *sequences(60, 2, 50, gc=0.6)]
TARGETS = np.repeat(np.arange(2), 60)
TEST = [*sequences(10, 3, 40, gc=0.4), "ACGTNNACGGT", "NNNN"]


def learner(targets: np.ndarray = TARGETS) -> Learner:
    return Learner(labelled(TRAIN, targets))


def test_markov_models_are_bayes_over_counted_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "ORDERS", (2,))
    found, chosen = rules.markov(learner(), Joined.of(TEST))
    assert chosen == "order 2"
    counts = [
        Counter(text[at : at + 3] for text in TRAIN[60 * c : 60 * c + 60] for at in range(len(text) - 2))
        for c in (0, 1)
    ]
    for row, text in enumerate(TEST):
        logs = [math.log(0.5)] * 2
        for at in range(len(text) - 2):
            word = text[at : at + 3]
            if "N" not in word:
                for c in (0, 1):
                    seen = {x: 1 + counts[c][word[:2] + x] for x in "ACGT"}
                    logs[c] += math.log(seen[word[2]] / sum(seen.values()))
        assert found[row, 1] == pytest.approx(1 / (1 + math.exp(logs[0] - logs[1])), abs=1e-6)


def test_bases_in_place_are_a_naive_bayes() -> None:
    texts = sequences(80, 5, 30)
    texts = [f"{'ACGT'[row % 2]}{text[1:]}" for row, text in enumerate(texts)]
    model = Learner(labelled(texts[:60], halves(60)))
    found = rules.places(model, Joined.of(texts[60:]))
    assert found is not None
    for row, text in enumerate(texts[60:]):
        logs = []
        for c in (0, 1):
            mine = texts[c:60:2]
            logs.append(sum(math.log((1 + sum(one[at] == x for one in mine)) / 34) for at, x in enumerate(text)))
        assert found[row, 1] == pytest.approx(1 / (1 + math.exp(logs[0] - logs[1])))
    assert rules.places(learner(), Joined.of(TEST)) is None  # lengths differ


def test_numbers_about_sequences() -> None:
    joined = Joined.of(["ACGTNNCG", "GGCC"])
    assert rules.lengths_of(joined).tolist() == [[8, 0.25], [4, 0.0]]
    # 2 CpG of 2 C x 2 G / 6 letters expected; none in GGCC
    assert rules.compositions_of(joined) == pytest.approx(np.array([[4 / 6, 3.0], [1.0, 0.0]]))


def test_what_is_looked_up_is_the_neighbours_label_and_else_the_prior() -> None:
    prior = np.array([0.9, 0.1])
    found = rules.looked_up(prior, np.array([0, 1]), np.array([1, -1, 0]), np.array([0.1, 0.0, 1.0]))
    assert found.argmax(1).tolist() == [1, 0, 0] and found.sum(1) == pytest.approx(np.ones(3))
    assert found[1].tolist() == prior.tolist()


def test_partners_say_what_partners_within_train_say_of_each_other() -> None:
    labels = np.array([0, 1, 0, 1])
    else_ = np.full((2, 2), 0.5)
    found = rules.from_partners(labels, {0: [1], 1: [0, 5], 5: [1], 2: [3], 3: [2]}, else_)
    assert (
        found[0].tolist() == [0.5, 0.5] and found[1, 0] > 0.99
    )  # row 5 is the second test sequence; 1 has partners of 0


def test_shares_in_place_and_pairs() -> None:
    joined = Joined.of(["ACGTACGT", "ACGTTTTT", "AAAAAAAA"])
    assert in_place(joined, np.array([[0, 1], [0, 2]])).tolist() == [5 / 8, 2 / 8]
    text = sequences(1, 1, 60)[0]
    texts = [text, text[:30] + sequences(1, 2, 30)[0], *sequences(60, 3, 60)]
    kept = next(one for one in find_made(Joined.of(texts), halves(62)) if one.how == "parts in place")
    assert kept.pairs.tolist() == [[0, 1]] and partners(kept) == {0: [1], 1: [0]} and not kept.found


def test_what_a_rule_chooses_is_chosen_within_train() -> None:
    """Labels that depend on the base after CG: a Markov order below 2 cannot tell."""
    draw = np.random.default_rng(0)
    texts = [
        "".join(draw.choice(["ACGA", "TCGT", "AAAA", "TTTT"], 10, p=[0.4 - 0.3 * c, 0.1 + 0.3 * c, 0.25, 0.25]))
        for c in halves(300)
    ]
    model = Learner(labelled(texts[:200], halves(200)))
    found, chosen = rules.markov(model, Joined.of(texts[200:]))
    assert int(chosen.split()[1]) >= 2 and (found.argmax(1) == halves(100)).mean() > 0.9


def test_of_a_large_train_set_a_part_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST_BASES", 2000)
    parts = [learner().data.names for _ in range(2)]
    assert 40 <= len(parts[0]) <= 50 and parts[0] == parts[1] and len({*learner().targets.tolist()}) == 2


def test_a_ridge_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    model = learner(np.array([text.count("CG") for text in TRAIN], dtype=np.float32))
    joined = Joined.of(TEST[:10])
    found, chosen = values.ridge(model, joined)
    k = int(chosen.split()[1])
    features, tested = (
        np.sqrt(c / c.sum(1, keepdims=True)) for c in (model.counts(k).toarray(), rules.counts_of(joined, k).toarray())
    )
    mean, spread = features.mean(0), np.maximum(features.std(0), 1e-6)
    judge = Ridge(alpha=0.01 * len(TRAIN)).fit((features - mean) / spread, model.targets)
    assert found[:, 0] == pytest.approx(judge.predict((tested - mean) / spread), abs=1e-3)


def test_outputs_that_were_not_measured_do_not_count_in_a_mean() -> None:
    outputs = np.array([[1, np.nan, np.nan], [0, 1, np.nan]])
    assert values.means_of(outputs).tolist() == [0.5, 1.0, 0.0]
    assert values.looked_up_values(np.array([0.5, 1.0, 0.0]), outputs, np.array([0, -1])).tolist() == [
        [1.0, 1.0, 0.0],
        [0.5, 1.0, 0.0],
    ]


def test_letters_round_a_base_are_a_table_of_train() -> None:
    """A base of class 1 is a C behind an A: three letters round it say so, one does not, and nine are too rare."""
    texts = sequences(120, 1, 30)
    bases = [np.array([text[at - 1 : at + 1] == "AC" for at in range(30)], dtype=np.int8) for text in texts]
    bases[0][4] = UNLABELLED
    test = labelled(["TACGTC"], (np.array([0, 0, 1, 0, UNLABELLED, 0], np.int8),))
    found = values.base_rules(labelled(texts, tuple(bases)), test)
    assert [(name, chosen) for name, chosen, _ in found] == [("majority", ""), ("letters round the base", "k 3")]
    counted = np.concatenate(bases)
    share = np.count_nonzero(counted == 1) / np.count_nonzero(counted != UNLABELLED)
    assert found[0][2][0].tolist() == pytest.approx([1 - share, share])
    assert found[1][2][:6].argmax(1).tolist() == [0, 0, 1, 0, 0, 0] and found[1][2][1:5].max(1).min() > 0.95
    assert found[1][2][5].tolist() == found[0][2][0].tolist()  # no letter behind the last base: the prior
    assert len(found[1][2]) == len(values.flat_targets(test)) == 7  # a base more stands behind each sequence
