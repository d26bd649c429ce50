"""Finds sequences of one class that were made from another's: shuffles, and parts of a sequence left where they stood.

    equal length and equal counts of dinucleotides, other letters ----------> shuffled dinucleotides
    equal length and equal counts of bases, other letters ------------------> shuffled bases
    equal length, words in place, and a share of all letters in place ------> parts in place

Partners are looked for in both sets together: a negative's positive may be in the other one. n sequences of both sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_ds.suites import thresholds
from hyena_ds.suites.kmers import Index, Integers, Joined, counts_of, kept_of, sketch_of

_MOST_PARTNERS = 20
"""A group of more sequences with equal counts is low complexity, not construction."""


SHUFFLED, SHUFFLED_BASES, IN_PLACE = "shuffled dinucleotides", "shuffled bases", "parts in place"


@dataclass(frozen=True)
class Made:
    """Pairs of sequences of which one may be made from the other, and what their labels say."""

    how: str
    pairs: Integers
    """(p, 2) rows of both sets together, each pair once."""
    share: float
    """Share of a class that is made from another class, beyond chance; for the class that has most."""
    of: int
    """That class."""

    @property
    def found(self) -> bool:
        """Whether most of the class is made."""
        return self.share >= thresholds.MADE


def find_made(joined: Joined, targets: NDArray[np.int64]) -> list[Made]:
    """What is found of each way; `targets` are the classes of the n sequences."""
    ways = {SHUFFLED: _shuffles(joined, 2), SHUFFLED_BASES: _shuffles(joined, 1), IN_PLACE: _kept(joined)}
    sizes = np.bincount(targets)
    found = []
    for how, pairs in ways.items():
        apart = targets[pairs[:, 0]] != targets[pairs[:, 1]]
        other, same = (
            np.bincount(targets[np.unique(pairs[some])], minlength=len(sizes)) / np.maximum(sizes, 1)
            for some in (apart, ~apart)
        )
        # What is alike by chance, or by descent, is so within a class too; there are more or fewer others to be alike to.
        # The share within the class is taken two spreads higher than it was counted, since a class may be small.
        low = (same * sizes + 1) / (sizes + 2)
        high = np.minimum(low + 2 * np.sqrt(low * (1 - low) / (sizes + 2)), 1.0)
        chance = 1 - (1 - high) ** ((len(targets) - sizes) / np.maximum(sizes - 1, 1))
        made = np.where(sizes >= thresholds.FEWEST_MADE, (other - chance) / np.maximum(1 - chance, 1e-9), 0.0)
        found.append(Made(how, pairs, max(0.0, float(made.max())), int(made.argmax())))
    # Where dinucleotides are kept bases are too, which says nothing more.
    return [one for one in found if not (one.how == SHUFFLED_BASES and found[0].found)]


def partners(made: Made) -> dict[int, list[int]]:
    """The partners of each row, at most _MOST_PARTNERS."""
    found: dict[int, list[int]] = defaultdict(list)
    for a, b in made.pairs.tolist():
        for mine, theirs in ((a, b), (b, a)):
            if len(found[mine]) < _MOST_PARTNERS:
                found[mine].append(theirs)
    return found


def _shuffles(joined: Joined, k: int) -> Integers:
    """Pairs of equal length and counts of k-mers, whose letters differ where they should."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    counts = counts_of(joined, k).toarray().astype(np.int64)
    signature = np.column_stack([joined.lengths, counts])
    for row in np.flatnonzero(joined.lengths >= thresholds.SHORTEST_TO_SHUFFLE).tolist():
        groups[signature[row].tobytes()].append(row)
    small = [group for group in groups.values() if 2 <= len(group) <= _MOST_PARTNERS]
    pairs = np.array([(a, b) for group in small for i, a in enumerate(group) for b in group[i + 1 :]], dtype=np.int64)
    pairs = pairs.reshape(-1, 2)
    return pairs[in_place(joined, pairs) < 0.6] if len(pairs) else pairs


def _kept(joined: Joined) -> Integers:
    sketch = sketch_of(joined, thresholds.KEPT_LETTERS, kept_of(joined), in_place=True)
    found = [np.zeros((0, 2), dtype=np.int64)]
    wanted = max(1, thresholds.KEPT_WORDS // kept_of(joined))
    for rows, others, count in Index(sketch).pairs(sketch):
        some = (count >= wanted) & (rows < others) & (joined.lengths[rows] == joined.lengths[others])
        pairs = np.column_stack([rows[some], others[some]])
        share = in_place(joined, pairs)
        found.append(pairs[(share >= thresholds.KEPT_LEAST) & (share < thresholds.KEPT_MOST)])
    return np.concatenate(found)


def in_place(joined: Joined, pairs: Integers) -> NDArray[np.float64]:
    """(p) share of the letters that two sequences of one length have in the same places."""
    share = np.zeros(len(pairs))
    for first, last in _blocks(joined.lengths[pairs[:, 0]]):
        some = pairs[first:last]
        size = joined.lengths[some[:, 0]]
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        a, b = (joined.codes[np.repeat(joined.starts[some[:, side]], size) + offset] for side in (0, 1))
        row = np.repeat(np.arange(len(some)), size)
        share[first:last] = np.bincount(row, (a == b), minlength=len(some)) / np.maximum(size, 1)
    return share


def _blocks(sizes: Integers, most: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Ranges whose sizes add up to about `most`."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, "right")))
        yield first, last
        first = last
