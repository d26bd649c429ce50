"""K-mers of many sequences at once: counts of short ones, and a sketch of long ones by which shared sequence is found.

    sequences --concatenated, a gap between--> codes --words--> counts (n, 4^k)
                                                     --hashed, either strand, every s-th kept--> Sketch: (row, hash) pairs
    two sketches --sparse product, block by block--> for each row of one the rows of the other that share most

A sketch keeps the smallest hashes, one in s (FracMinHash: a MinHash whose size follows the sequence's), so that its memory has a bound;
for sets of usual size s is 1, and shared shares are exact.

Codes are 0 to 3 for A C G T, 4 for N and gaps. n sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Codes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Counts = Any
"""scipy.sparse.csr_matrix, which has no types."""

UNKNOWN = 4
MOST_HASHES = 1 << 24
"""Hashes of a sketch, about."""
_CHUNK = 1 << 22
"""Bases that are worked on at once."""
_MOST_PAIRS = 1 << 22
"""Shared hashes that are counted at once."""
_MOST_WORK = 1 << 25
"""Shared hashes in all, about: lists of rows with a common hash are cut for it."""
_LONGEST_LISTS = (256, 64, 16, 4)
_BITS = np.uint64(40)
"""Length of a hash, so that it can be sorted together with a row of 24 bits: one in 100,000 look-ups is wrong, which counts for nothing."""
_CODE = np.full(256, UNKNOWN, dtype=np.uint8)
_CODE[[*b"ACGT"]] = [0, 1, 2, 3]


@dataclass(frozen=True)
class Joined:
    """Sequences in one array, with a gap behind each."""

    codes: Codes
    starts: Integers
    """(n + 1): where each begins; the last is the end of all."""

    @classmethod
    def of(cls, sequences: Sequence[str]) -> Joined:
        """Join sequences of upper-case letters."""
        text = "N".join([*sequences, ""]).encode()
        starts = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(one) + 1 for one in sequences], out=starts[1:])
        return cls(_CODE[np.frombuffer(text, dtype=np.uint8)], starts)

    @property
    def lengths(self) -> Integers:
        """(n) bases."""
        return np.diff(self.starts) - 1

    def __len__(self) -> int:
        """Sequences."""
        return len(self.starts) - 1

    def part(self, first: int, last: int) -> Joined:
        """The sequences from `first` to before `last`."""
        begin = self.starts[first]
        return Joined(self.codes[begin : self.starts[last]], self.starts[first : last + 1] - begin)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of sequences of about _CHUNK bases."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.starts, self.starts[first] + _CHUNK, "right")) - 1
            last = min(max(last, first + 1), len(self))
            yield first, last
            first = last


def words(codes: Codes, k: int) -> tuple[Hashes, NDArray[np.bool_]]:
    """(the k letters from each base on as a number to base 4, whether all of them are known); k is 1 to 31."""
    count = max(0, len(codes) - k + 1)
    found = np.zeros(count, dtype=np.uint64)
    unknown = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum(codes == UNKNOWN, out=unknown[1:])
    for offset in range(k):
        found <<= np.uint64(2)
        found |= np.minimum(codes[offset : offset + count], 3).astype(np.uint64)
    return found, unknown[k : k + count] == unknown[:count]


def either_strand(codes: Codes, k: int) -> tuple[Hashes, NDArray[np.bool_]]:
    """`words`, of the two strands the one with the smaller number."""
    forward, known = words(codes, k)
    turned = np.where(codes == UNKNOWN, codes, 3 - codes)[::-1].astype(np.uint8)
    return np.minimum(forward, words(turned, k)[0][::-1]), known


def mixed(numbers: Hashes) -> Hashes:
    """A hash of each number (splitmix64's finalizer), spread over 64 bits."""
    h = numbers + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def counts_of(joined: Joined, k: int) -> Counts:
    """(n, 4^k) counts of k-mers on the strand as it is read, float32."""
    parts = []
    for first, last in joined.chunks():
        begin, end = joined.starts[first], joined.starts[last]
        found, known = words(joined.codes[begin:end], k)
        rows = np.repeat(np.arange(last - first), np.diff(joined.starts[first : last + 1]))[: len(known)][known]
        key, amount = np.unique(rows * 4**k + found[known].astype(np.int64), return_counts=True)
        place = (key // 4**k, key % 4**k)
        parts.append(sparse.csr_matrix((amount.astype(np.float32), place), shape=(last - first, 4**k)))
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, 4**k), dtype=np.float32)


@dataclass(frozen=True)
class Sketch:
    """Distinct hashes of each sequence, in the order of its rows."""

    hashes: Hashes
    """Ascending within a row."""
    starts: Integers
    """(n + 1)."""

    @property
    def sizes(self) -> Integers:
        """(n) hashes of each sequence."""
        return np.diff(self.starts)

    def row(self, number: int) -> Hashes:
        """The hashes of one sequence."""
        return self.hashes[self.starts[number] : self.starts[number + 1]]

    def shared(self, number: int, other: Sketch, theirs: int) -> int:
        """How many hashes a sequence shares with one of another sketch."""
        mine, yours = self.row(number), other.row(theirs)
        if not len(yours):
            return 0
        at = np.minimum(np.searchsorted(yours, mine), len(yours) - 1)
        return int(np.count_nonzero(yours[at] == mine))


def sketch_of(joined: Joined, k: int, keep: int, in_place: bool = False) -> Sketch:
    """The hashes of k-mers of either strand, of which about one in `keep` is kept; `in_place`: of this strand, with their offset."""
    limit = np.uint64((2 ** int(_BITS) - 1) // keep)
    hashes: list[Hashes] = []
    sizes: list[Integers] = []
    for first, last in joined.chunks():
        begin, end = int(joined.starts[first]), int(joined.starts[last])
        found, known = (words if in_place else either_strand)(joined.codes[begin:end], k)
        at = np.flatnonzero(known)
        rows = np.repeat(np.arange(last - first), np.diff(joined.starts[first : last + 1]))[at]
        chosen = found[at]
        if in_place:
            chosen = chosen + (at + begin - joined.starts[first + rows]).astype(np.uint64) * np.uint64(
                0xD1342543DE82EF95
            )
        chosen = mixed(chosen) >> (np.uint64(64) - _BITS)
        kept = chosen <= limit
        both = np.sort(rows[kept].astype(np.uint64) << _BITS | chosen[kept])
        both = both[np.append(True, both[1:] != both[:-1])] if len(both) else both
        hashes.append(both & ((np.uint64(1) << _BITS) - np.uint64(1)))
        sizes.append(np.bincount((both >> _BITS).astype(np.int64), minlength=last - first))
    starts = np.zeros(len(joined) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(sizes) if sizes else np.zeros(0, np.int64), out=starts[1:])
    return Sketch(np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), starts)


def kept_of(*sets: Joined) -> int:
    """One in how many hashes a sketch keeps, so that all sets together stay below MOST_HASHES."""
    return 1 + sum(len(one.codes) for one in sets) // MOST_HASHES


class Index:
    """Rows of a sketch by their hashes, to be looked up by those of another; lists of rows are cut where they are long."""

    def __init__(self, sketch: Sketch):
        """The rows of a list that is cut are drawn, the same for every hash, so that those that stay share all they have."""
        n = len(sketch.starts) - 1
        rows = np.repeat(np.arange(n), sketch.sizes)
        drawn = np.argsort(np.argsort(mixed(np.arange(n, dtype=np.uint64)))).astype(np.uint64)
        order = np.argsort(sketch.hashes << (np.uint64(64) - _BITS) | drawn[rows])
        self.sketch, self._rows = sketch, rows[order]
        sorted_ = sketch.hashes[order]
        first = np.flatnonzero(np.concatenate(([True], sorted_[1:] != sorted_[:-1]))) if n and len(order) else order
        self._hashes = sorted_[first]
        self._starts = np.append(first, len(order)).astype(np.int64)
        self._own = np.empty(len(order), dtype=np.int64)
        self._own[order] = np.repeat(np.arange(len(first)), np.diff(self._starts))

    def pairs(self, other: Sketch) -> Iterator[tuple[Integers, Integers, Integers]]:
        """(rows of `other`, rows of this sketch, hashes that they share) in blocks of rows; of one sketch no row with itself."""
        if not len(self._hashes):
            return
        itself = other is self.sketch
        at = self._own if itself else self._look_up(other.hashes)
        if itself:
            there = np.flatnonzero(self._starts[at + 1] - self._starts[at] > 1)
        else:
            there = np.flatnonzero(self._hashes[at] == other.hashes)
        rows = np.repeat(np.arange(len(other.starts) - 1), other.sizes)[there]
        at = at[there]
        length = self._starts[at + 1] - self._starts[at]
        longest = next(
            (cut for cut in _LONGEST_LISTS if np.minimum(length, cut).sum() <= _MOST_WORK), _LONGEST_LISTS[-1]
        )
        length = np.minimum(length, longest)
        ends = np.cumsum(length)
        n = len(self.sketch.starts) - 1
        first = 0
        while first < len(rows):
            last = int(np.searchsorted(ends, (ends[first - 1] if first else 0) + _MOST_PAIRS, "right"))
            last = int(np.searchsorted(rows, rows[min(max(last, first + 1), len(rows)) - 1], "right"))  # whole rows
            size = length[first:last]
            offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
            mine = self._rows[np.repeat(self._starts[at[first:last]], size) + offset]
            theirs = np.repeat(rows[first:last], size)
            if itself:
                apart = mine != theirs
                mine, theirs = mine[apart], theirs[apart]
            key, count = np.unique(theirs * n + mine, return_counts=True)
            if len(key):
                yield key // n, key % n, count
            first = last

    def _look_up(self, hashes: Hashes) -> Integers:
        """The list of each hash, or a wrong one where there is none; in order, so that memory is read in order."""
        order = np.argsort(hashes)
        at = np.empty(len(hashes), dtype=np.int64)
        at[order] = np.minimum(np.searchsorted(self._hashes, hashes[order]), len(self._hashes) - 1)
        return at
