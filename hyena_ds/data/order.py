"""Random order as a pure function of integers: the same on any machine, grid and library version.

hash64(seed, stage, epoch, ...) --> 64 well-mixed bits --argsort--> a permutation
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hash64(*parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Mix integers (scalars or arrays, broadcast) into 64 bits each. Source of the mixer: SplitMix64 (Steele et al. 2014)."""
    state = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _splitmix64(state ^ np.asarray(part).astype(np.uint64))
    return state


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """The numbers 0 .. count - 1 in an order that depends on `key` alone."""
    bits = hash64(*key, np.arange(count))
    order = np.argsort(bits)  # by vector instructions, where there are some
    if count > 1 and bool((bits[order[1:]] == bits[order[:-1]]).any()):  # once in 2^65 / count^2 permutations
        return np.argsort(bits, kind="stable")
    return order


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
