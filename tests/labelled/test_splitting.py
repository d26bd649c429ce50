"""A validation split is of every class, parts no equal sequences and no group, and does not depend on the order of the file."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hyena_ds.errors import UserError
from hyena_ds.labelled.sets import LabelledSet, joined
from hyena_ds.labelled.splitting import other_strand, validation_split


def some(sequences: list[str], targets: list[int] | np.ndarray, groups: list[str] | None = None) -> LabelledSet:
    n = len(sequences)
    names = tuple(f"t.csv:{row}" for row in range(n))
    array = np.array(targets, dtype=np.int64) if isinstance(targets, list) else targets
    return LabelledSet(
        tuple(sequences), array, ("a", "b", "c"), names, (None,) * n, None if groups is None else tuple(groups)
    )


def drawn(n: int, seed: int = 0) -> list[str]:
    letters = np.random.default_rng(seed).integers(0, 4, (n, 30))
    return ["".join("ACGT"[base] for base in row) for row in letters.tolist()]


def test_a_share_of_every_class_is_split_off() -> None:
    targets = [0] * 700 + [1] * 250 + [2] * 50
    train, valid = validation_split(some(drawn(1000), targets), 0.1, seed=3)
    assert Counter(np.array(targets)[valid].tolist()) == {0: 70, 1: 25, 2: 5}
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(1000))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(valid) > 0)


def test_it_depends_on_the_seed_and_on_no_order() -> None:
    data = some(drawn(300), [row % 3 for row in range(300)])
    turned = data.take(np.arange(300)[::-1])
    parts = [set(one.take(validation_split(one, 0.2, seed)[1]).sequences) for one, seed in ((data, 1), (turned, 1))]
    assert parts[0] == parts[1]
    assert parts[0] != set(data.take(validation_split(data, 0.2, 2)[1]).sequences)


def test_equal_sequences_and_groups_stay_together() -> None:
    once = drawn(120)
    sequences = [*once, *once[:40], *map(other_strand, once[40:80])]
    targets = [row % 2 for row in range(200)]
    groups = [f"gene {row % 37}" for row in range(200)]
    train, valid = validation_split(some(sequences, targets), 0.25, seed=0)
    strands = [{min(sequences[row], other_strand(sequences[row])) for row in part} for part in (train, valid)]
    assert not strands[0] & strands[1] and 40 <= len(valid) <= 60
    parted = some(drawn(200), targets, groups)
    train, valid = validation_split(parted, 0.25, seed=0)
    assert not {groups[row] for row in train} & {groups[row] for row in valid} and 35 <= len(valid) <= 65


def test_a_set_without_classes_is_split_by_rows() -> None:
    train, valid = validation_split(some(drawn(50), np.linspace(0, 1, 50, dtype=np.float32)), 0.2, seed=0)
    assert (len(train), len(valid)) == (40, 10)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"valid: found the fraction \S+, wanted one between 0 and 1"):
        validation_split(some(drawn(4), [0, 1, 0, 1]), fraction, 0)


def test_a_part_without_a_class_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"valid: the fraction 0.1 of the 3 rows of the class 'b'.* leaves none to validate"
    ):
        validation_split(some(drawn(103), [0] * 100 + [1] * 3), 0.1, 0)
    one = some(drawn(20), [0] * 10 + [1] * 10, ["only"] * 20)
    with pytest.raises(UserError, match=r"of the 10 rows of the class 'a', .* leaves none to train on"):
        validation_split(one, 0.9, 0)
    with pytest.raises(UserError, match=r"of the 4 rows of the set, .* leaves none to validate on; name a file"):
        validation_split(some(drawn(4), np.zeros(4, np.float32)), 0.1, 0)


def test_parts_are_joined() -> None:
    data = some(drawn(6), [0, 1, 2, 0, 1, 2], [*"abcdef"])
    again = joined([data.take(np.arange(2)), data.take(np.arange(2, 6))])
    assert again.sequences == data.sequences and again.groups == data.groups
    assert np.array_equal(again.targets, data.targets)
