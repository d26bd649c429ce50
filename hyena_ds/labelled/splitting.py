"""A validation split of the train set, by which a model is chosen, so that the test set is not.

Sequences that are equal, on either strand, and sequences of one group are a unit and stay together. Units are in the order of a
hash of what they hold and the seed, so a split depends neither on the order of the file nor on a library's generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import UserError
from hyena_ds.labelled.sets import LabelledSet

Rows = NDArray[np.int64]
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def validation_split(data: LabelledSet, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """(numbers of the rows to train on, of those to validate on), each ascending.

    About `fraction` of the rows of each class are to validate on, of a set without classes of all rows. Raises UserError where a
    part would have no row, or none of a class.
    """
    if not 0 < fraction < 1:
        raise UserError(f"valid: found the fraction {fraction}, wanted one between 0 and 1")
    strata = _strata(data)
    wanted = {name: fraction * count for name, count in Counter(strata).items()}
    have: Counter[int] = Counter()
    valid: list[int] = []
    for unit in _units(data, seed):
        counts = Counter(strata[row] for row in unit)
        # How much the squared distance from what is wanted grows by taking the unit, each class by its own size.
        change = sum(u * (u + 2 * (have[name] - wanted[name])) / wanted[name] for name, u in counts.items())
        if change < 0:
            have += counts
            valid += unit
    total = Counter(strata)
    for name, count in sorted(total.items()):
        if not 0 < have[name] < count:
            what = f"class '{data.classes[name]}'" if name >= 0 else "set"
            part = "to validate on" if have[name] == 0 else "to train on"
            raise UserError(
                f"valid: the fraction {fraction} of the {count:,} rows of the {what}, with equal sequences and groups kept "
                f"together, leaves none {part}; name a file, or another fraction"
            )
    chosen = np.zeros(len(data), dtype=bool)
    chosen[valid] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def other_strand(sequence: str) -> str:
    """The reverse complement of upper-case letters."""
    return sequence.translate(_COMPLEMENT)[::-1]


def _strata(data: LabelledSet) -> list[int]:
    """The class of each row; -1 for all where rows have no class."""
    targets = data.targets
    if isinstance(targets, np.ndarray) and targets.dtype == np.int64:
        classes: list[int] = targets.tolist()
        return classes
    return [-1] * len(data)


def _units(data: LabelledSet, seed: int) -> list[list[int]]:
    """Rows that stay together, in the order of the seed."""
    key_of = [min(text, other_strand(text)).encode() for text in data.sequences]
    hashes = [hashlib.blake2b(key, digest_size=16, key=str(seed).encode()).digest() for key in key_of]
    parent = list(range(len(data)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[bytes | str, int] = {}
    labels = data.groups or [""] * len(data)
    for row, (digest, group) in enumerate(zip(hashes, labels, strict=True)):
        for key in (digest, group) if group else (digest,):
            parent[root(row)] = root(first.setdefault(key, row))
    units: dict[int, list[int]] = {}
    for row in range(len(data)):
        units.setdefault(root(row), []).append(row)
    return sorted(units.values(), key=lambda unit: min(hashes[row] for row in unit))
