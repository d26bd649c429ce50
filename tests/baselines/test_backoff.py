"""Markov models with back-off against dictionaries of strings, counted letter by letter, and one formula written out."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from hyena_ds.baselines.backoff import (
    UNKNOWN,
    WEIGHTS,
    Codes,
    Counted,
    Earlier,
    MerCounts,
    Trained,
    backed_off,
    codes_of,
    earlier,
    in_order,
    keys,
    known_run,
)
from hyena_ds.errors import UserError
from tests.data.genomes import other_strand, tokens_of

HIGHEST = 4
RANDOM = random.Random(5)
TRAINING = "".join(RANDOM.choices("ACGT", (5, 1, 2, 3), k=300)) + "NN" + "ACGAC" * 30 + "R" + "TTGAC" * 9
TESTED = "NACGA" + "".join(RANDOM.choices("ACGT", (4, 1, 1, 3), k=80)) + "NGAN" + "ACGAC" * 8 + "N"


def codes(letters: str) -> Codes:
    return codes_of(tokens_of(letters))


def mers(strands: tuple[str, ...], length: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for strand in strands:
        for at in range(len(strand) - length + 1):
            if set(mer := strand[at : at + length]) <= set("ACGT"):
                found[mer] += 1
    return found


def probability(context: str, letter: str, counts: list[Counter[str]], weights: tuple[float, ...]) -> float:
    """P of a letter after a context of known letters, by the definition; counts[length] are those of mers."""
    p = 0.25
    for order in range(len(context) + 1):
        before = context[len(context) - order :]
        seen = sum(counts[order + 1][before + any_letter] for any_letter in "ACGT")
        p = (counts[order + 1][before + letter] + weights[order] * p) / (seen + weights[order])
    return p


def context_of(letters: str, at: int, order: int) -> str:
    context = ""
    while len(context) < min(order, at) and letters[at - 1 - len(context)] in "ACGT":
        context = letters[at - 1 - len(context)] + context
    return context


def test_every_order_costs_what_the_definition_says() -> None:
    counts = MerCounts(HIGHEST)
    for piece in (TRAINING[:200], TRAINING[200:]):
        counts.add(codes(piece))
    strands = tuple(strand for piece in (TRAINING[:200], TRAINING[200:]) for strand in (piece, other_strand(piece)))
    by_length = [mers(strands, length) if length else Counter() for length in range(HIGHEST + 2)]
    for length, table in enumerate(counts.tables(), start=1):
        assert table.sum() == by_length[length].total()
    weights = (0.5, 8.0, 2.0, 1.0, 16.0)
    losses_kn, same = backed_off(Counted(counts.tables(), codes(TESTED)), codes(TESTED), HIGHEST, weights)
    assert same == weights
    for order in range(HIGHEST + 1):
        for at, letter in enumerate(TESTED):
            if letter not in "ACGT":
                assert math.isnan(losses_kn[order, at])
                continue
            wanted = -math.log(probability(context_of(TESTED, at, order), letter, by_length, weights))
            assert losses_kn[order, at] == pytest.approx(wanted, rel=1e-12)


def test_online_a_base_is_coded_with_what_came_before_it_and_nothing_else() -> None:
    weights = (1.0, 2.0, 4.0, 8.0, 0.25)
    text = TESTED + TRAINING
    losses_kn, _ = backed_off(Earlier(codes(text), HIGHEST), codes(text), HIGHEST, weights)
    for at in range(0, len(text), 7):
        if text[at] not in "ACGT":
            continue
        by_length = [mers((text[:at],), length) if length else Counter() for length in range(HIGHEST + 2)]
        # A context that ends here has been seen only with a base behind it: those of whole mers.
        for order in range(HIGHEST + 1):
            wanted = -math.log(probability(context_of(text, at, order), text[at], by_length, weights))
            assert losses_kn[order, at] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("order", [0, 2, HIGHEST])
def test_probabilities_add_up_to_one(order: int) -> None:
    trained = Trained.on([codes(TRAINING)], len(TRAINING), HIGHEST)
    for context in ("ACGA", "TTTT", "NACG"):
        total = sum(math.exp(-trained.losses(codes(context + letter))[order, -1]) for letter in "ACGT")
        assert total == pytest.approx(1, rel=1e-12)


def test_weights_are_the_best_for_the_last_tenth_of_the_training_bases_and_then_all_are_counted() -> None:
    pieces = [codes(TRAINING[:100]), codes(TRAINING[100:])]
    trained = Trained.on(pieces, len(TRAINING), HIGHEST)
    kept_back = len(TRAINING) // 10
    head, tail = TRAINING[:-kept_back], TRAINING[-kept_back:]
    counts = MerCounts(HIGHEST)
    for piece in (head[:100], head[100:]):
        counts.add(codes(piece))
    for order in range(HIGHEST + 1):
        costs = {}
        for weight in WEIGHTS:
            weights = (*trained.weights[:order], weight, *trained.weights[order + 1 :])
            losses_kn, _ = backed_off(Counted(counts.tables(), codes(tail)), codes(tail), HIGHEST, weights)
            costs[weight] = float(np.nansum(losses_kn[order]))
        assert trained.weights[order] == min(costs, key=lambda weight: costs[weight])
        mean = costs[trained.weights[order]] / sum(letter in "ACGT" for letter in tail)
        assert trained.tuned_k[order] == pytest.approx(mean, rel=1e-12)
    counts.add(codes(tail))
    wanted, _ = backed_off(Counted(counts.tables(), codes(TESTED)), codes(TESTED), HIGHEST, trained.weights)
    np.testing.assert_array_equal(trained.losses(codes(TESTED)), wanted)
    assert trained.bases == sum(letter in "ACGT" for letter in TRAINING)


def test_online_weights_are_chosen_by_the_bases_that_may_choose() -> None:
    text = codes(TRAINING + TESTED)
    choose_n = np.arange(len(text)) < len(TRAINING)
    _, weights = backed_off(Earlier(text, HIGHEST), text, HIGHEST, choose_n=choose_n)
    for order in range(HIGHEST + 1):
        costs = {}
        for weight in WEIGHTS:
            tried = (*weights[:order], weight, *weights[order + 1 :])
            losses_kn, _ = backed_off(Earlier(text, HIGHEST), text, HIGHEST, tried)
            costs[weight] = float(np.nansum(losses_kn[order, choose_n & (known_run(text) > order)]))
        assert weights[order] == min(costs, key=lambda weight: costs[weight])


def test_without_a_base_to_choose_the_weights_with_it_says_so() -> None:
    for text in ("ACGT" * 20 + "N" * 20, "ACGT"):
        with pytest.raises(UserError, match=r"training bases: found no A, C, G or T in the last \d+ of \d+"):
            Trained.on([codes(text)], len(text), HIGHEST)


def test_keys_runs_and_ranks() -> None:
    text = codes("ACNGTTA")
    assert known_run(text).tolist() == [1, 2, 0, 1, 2, 3, 4]
    assert keys(text, 2).tolist() == [0, 1, 4, 2, 11, 15, 12]
    assert keys(text[:1], 5).tolist() == [0]
    assert earlier(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    large = np.random.default_rng(2).integers(0, 2**34, 5000) >> np.arange(5000) % 30
    assert in_order(large).tolist() == np.argsort(large, kind="stable").tolist()
    assert not len(in_order(large[:0])) and set(codes("ANRacgt")[:3].tolist()) == {0, UNKNOWN}
