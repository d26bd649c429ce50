"""Random order as a pure function of integers: the same on any machine, grid and library version.

hash64(seed, stage, epoch, ...) --> 64 well-mixed bits --argsort--> a permutation
                                                    --those that begin alike, argsort--> a stretch of it
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST_STRETCHES = 64
_LEAST_STRETCH = 1 << 14
_BLOCK = 1 << 15
"""Numbers that are hashed together: their hashes stay in a core's cache."""


def hash64(*parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Mix integers (scalars or arrays, broadcast) into 64 bits each. Source of the mixer: SplitMix64 (Steele et al. 2014)."""
    state = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """The numbers 0 .. count - 1 in an order that depends on `key` alone."""
    return _argsort(hash64(*key, np.arange(count)))


class Shuffle:
    """`permutation(count, *key)`, place by place, of which a stretch at a time is sorted and held.

    A stretch is the numbers whose hashes begin with the same bits. To find one takes all hashes once more, but it sorts few
    of them: a step needs no more than a few places, and the first waits for them.
    """

    def __init__(self, count: int, *key: int):
        self._count, self._key = count, key
        most = max(1, min(_MOST_STRETCHES, count // _LEAST_STRETCH))
        self._bits = most.bit_length() - 1
        self._ends = np.arange(1, (1 << self._bits) + 1) * count >> self._bits
        """Places at which the stretches end: about, until one was found."""
        self._number = -1
        self._order: NDArray[np.int32 | np.int64] = np.zeros(0, np.int32)

    def __getitem__(self, place: int) -> int:
        while (number := int(np.searchsorted(self._ends, place, side="right"))) != self._number:
            self._find(number)
        return int(self._order[place - int(self._ends[number])])  # counted from the stretch's end

    @property
    def nbytes(self) -> int:
        """Memory that the stretch takes."""
        return self._order.nbytes

    def _find(self, number: int) -> None:
        """Hold stretch `number`, and learn where all of them end."""
        sizes, found = np.zeros(len(self._ends), np.int64), []
        for first in range(0, self._count, _BLOCK):
            bits = hash64(*self._key, np.arange(first, min(first + _BLOCK, self._count)))
            stretches = (bits >> np.uint64(1) >> np.uint64(63 - self._bits)).astype(np.int64)
            sizes += np.bincount(stretches, minlength=len(sizes))
            found.append(first + np.flatnonzero(stretches == number))
        numbers = np.concatenate(found)
        order = numbers[_argsort(hash64(*self._key, numbers))]
        self._order = order.astype(np.int32) if self._count < 2**31 else order
        self._ends, self._number = np.cumsum(sizes), number


def _argsort(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    order = np.argsort(bits)  # by vector instructions, where there are some
    if len(bits) > 1 and bool((bits[order[1:]] == bits[order[:-1]]).any()):  # once in 2^65 / count^2 permutations
        return np.argsort(bits, kind="stable")
    return order


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
