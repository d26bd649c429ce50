"""Markov models of orders 0 to K with back-off: each order leans on the one below it as far as its own counts are few.

    P_k(x | h) = (count(h x) + w_k P_{k-1}(x | h without its first base)) / (count(h) + w_k),   P_{-1} = 1/4

    training bases --MerCounts, nine tenths--> counts --the last tenth chooses w_0 .. w_K--> all counts
    no training bases --Earlier--> counts of what came before in the same bases: each is coded, then learnt from

A context that is cut short by an unknown letter or the first base takes the order that is left.

Codes are 0 to 3 for A C G T; everything else is UNKNOWN. n bases, K the highest order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hyena_ds.baselines.markov import of_other_strand
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import A, T

Codes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.integer]

UNKNOWN = 4
WEIGHTS = tuple(2.0**power for power in range(-2, 13))
"""Weights of the lower order that are tried, in counts."""
_MOST_KEPT_BACK = 1 << 21
"""Training bases that choose the weights."""
_MOST_TO_CHOOSE = 1 << 18
"""Bases that are looked at to choose a weight, evenly spread."""


class Evidence(Protocol):
    """Counts that speak about each of n bases."""

    def at(self, order: int) -> tuple[Counts, Counts]:
        """(n), (n): how often the `order` bases before each base occurred with that base behind them, and with any base.

        What is said of a base that has fewer known bases before it, or is unknown, does not count.
        """


def codes_of(ids_n: NDArray[np.uint8]) -> Codes:
    """Codes of token ids."""
    return np.where((ids_n >= A) & (ids_n <= T), ids_n - A, UNKNOWN).astype(np.uint8)


def known_run(codes_n: Codes) -> Integers:
    """How many known bases in a row end with each base, itself counted."""
    at = np.arange(len(codes_n))
    return at - np.maximum.accumulate(np.where(codes_n < UNKNOWN, -1, at))


def keys(codes_n: Codes, letters: int) -> Integers:
    """The last `letters` bases up to each base, as a number to base 4; unknown ones, and those before the first, count as A."""
    key_n = np.zeros(len(codes_n), dtype=np.int64)
    digits_n = np.where(codes_n < UNKNOWN, codes_n, 0)
    for back in range(min(letters, len(codes_n)) - 1, -1, -1):
        key_n *= 4
        key_n[back:] += digits_n[: len(digits_n) - back]
    return key_n


class MerCounts:
    """How often each run of 1 to K + 1 bases occurs, on both strands."""

    def __init__(self, highest: int):
        """Nothing counted yet; `highest` is K."""
        self.highest = highest
        self._tables = [np.zeros(4 ** (order + 1), dtype=np.uint32) for order in range(highest + 1)]

    def add(self, codes_n: Codes) -> None:
        """Count a stretch of bases."""
        # A base is entered once, with as many bases before it as there are; `tables` adds up those that end alike.
        run_n = np.minimum(known_run(codes_n), self.highest + 1)
        key_n = keys(codes_n, self.highest + 1)
        for letters in np.unique(run_n).tolist():
            if letters:
                own = key_n[run_n == letters] & (4**letters - 1)
                np.add.at(self._tables[letters - 1], own, np.uint32(1))

    def tables(self) -> list[NDArray[np.uint32]]:
        """Counts of runs of 1 to K + 1 bases, flat over their keys, of what was counted and of its other strand."""
        found = [self._tables[-1]]
        for own in reversed(self._tables[:-1]):
            found.append(own + found[-1].reshape(4, -1).sum(0, dtype=np.uint32))
        return [table + of_other_strand(table, letters) for letters, table in enumerate(reversed(found), start=1)]


class Counted:
    """What counted bases say about others."""

    def __init__(self, tables: list[NDArray[np.uint32]], codes_n: Codes):
        """`tables` are those of `MerCounts.tables`."""
        self._tables, self._key_n = tables, keys(codes_n, len(tables))

    def at(self, order: int) -> tuple[Counts, Counts]:
        """See `Evidence`."""
        table = self._tables[order]
        key_n = self._key_n & (len(table) - 1)
        return table[key_n], table.reshape(-1, 4)[key_n >> 2].sum(1, dtype=np.int64)


class Earlier:
    """What bases say about those that follow them, in one pass from first to last."""

    def __init__(self, codes_n: Codes, highest: int):
        self._key_n, self._run_n = keys(codes_n, highest + 1), known_run(codes_n)

    def at(self, order: int) -> tuple[Counts, Counts]:
        """See `Evidence`."""
        there = np.flatnonzero(self._run_n > order)
        key_m = self._key_n[there] & (4 ** (order + 1) - 1)
        both = np.zeros((2, len(self._key_n)), dtype=np.int64)
        both[0, there], both[1, there] = earlier(key_m), earlier(key_m >> 2)
        return both[0], both[1]


def in_order(keys_n: Integers) -> Integers:
    """Places of the keys, 0 or more, from the smallest to the largest, those of one value in their order."""
    order = np.arange(len(keys_n))
    for shift in range(0, int(keys_n.max(initial=0)).bit_length(), 16):  # numpy sorts 16 bits by counting
        digit_n = (keys_n[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digit_n, kind="stable")]
    return order


def earlier(keys_n: Integers) -> Integers:
    """How often each value occurred before."""
    order = in_order(keys_n)
    sorted_n = keys_n[order]
    at = np.arange(len(keys_n))
    first = np.maximum.accumulate(np.where(np.diff(sorted_n, prepend=-1) != 0, at, 0))
    counts_n = np.empty(len(keys_n), dtype=np.int64)
    counts_n[order] = at - first
    return counts_n


def backed_off(
    evidence: Evidence,
    codes_n: Codes,
    highest: int,
    weights: tuple[float, ...] = (),
    choose_n: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """((K + 1, n) losses in nats of orders 0 to K, NaN where a base is unknown; the weights w_0 .. w_K).

    Without `weights` each is the one of WEIGHTS that costs the bases of `choose_n` least, order by order.
    """
    run_n = known_run(codes_n)
    p_n = np.full(len(codes_n), 0.25)
    losses_kn = np.full((highest + 1, len(codes_n)), np.nan)
    chosen: list[float] = []
    for order in range(highest + 1):
        hits_n, seen_n = evidence.at(order)
        reach_n = run_n > order
        weight = (
            weights[order]
            if weights
            else _best_weight(reach_n if choose_n is None else reach_n & choose_n, hits_n, seen_n, p_n)
        )
        p_n = np.where(reach_n, _mixed(hits_n, seen_n, p_n, weight), p_n)
        losses_kn[order] = np.where(run_n > 0, -np.log(p_n), np.nan)
        chosen.append(weight)
    return losses_kn, tuple(chosen)


def _mixed(hits_n: Counts, seen_n: Counts, lower_n: Floats, weight: float) -> Floats:
    found: Floats = (hits_n + weight * lower_n) / (seen_n + weight)
    return found


def _best_weight(some_n: NDArray[np.bool_], hits_n: Counts, seen_n: Counts, lower_n: Floats) -> float:
    some = np.flatnonzero(some_n)
    some = some[:: 1 + len(some) // _MOST_TO_CHOOSE]
    evidence = hits_n[some], seen_n[some], lower_n[some]
    return min(WEIGHTS, key=lambda weight: -float(np.log(_mixed(*evidence, weight)).sum()))


class Trained:
    """Markov models with back-off, learnt from training bases."""

    def __init__(self, tables: list[NDArray[np.uint32]], weights: tuple[float, ...], tuned: Floats, bases: int):
        self._tables, self.weights = tables, weights
        self.tuned_k = tuned
        """(K + 1) nats a base of the training bases that chose the weights, before they were counted."""
        self.bases = bases
        """Training bases that are known."""

    @classmethod
    def on(cls, stretches: Iterable[Codes], total: int, highest: int) -> Trained:
        """Learn from stretches of `total` bases together; the last tenth, or less, chooses the weights before it is counted.

        Raises UserError where there is nothing to choose with.
        """
        counts, known = MerCounts(highest), 0
        kept_back = min(total // 10, _MOST_KEPT_BACK)
        last: list[Codes] = []
        for codes_n, tunes in _cut(stretches, total - kept_back):
            known += int(np.count_nonzero(codes_n < UNKNOWN))
            if tunes:
                last.append(codes_n)
            else:
                counts.add(codes_n)
        held_n = _joined(last)
        if not np.any(held_n < UNKNOWN):
            raise UserError(
                f"training bases: found no A, C, G or T in the last {kept_back:,} of {total:,}, which choose the back-off; "
                "give more or other regions"
            )
        losses_kn, weights = backed_off(Counted(counts.tables(), held_n), held_n, highest)
        for codes_n in last:
            counts.add(codes_n)
        return cls(counts.tables(), weights, np.nanmean(losses_kn, axis=1), known)

    def losses(self, codes_n: Codes) -> NDArray[np.float64]:
        """(K + 1, n) nats of each base under orders 0 to K, NaN where it is unknown."""
        return backed_off(Counted(self._tables, codes_n), codes_n, len(self._tables) - 1, self.weights)[0]


def _cut(stretches: Iterable[Codes], at: int) -> Iterator[tuple[Codes, bool]]:
    """The stretches, and whether they lie behind base number `at`; one that it falls into is cut in two."""
    done = 0
    for codes_n in stretches:
        before = max(0, min(len(codes_n), at - done))
        for piece, behind in ((codes_n[:before], False), (codes_n[before:], True)):
            if len(piece):
                yield piece, behind
        done += len(codes_n)


def _joined(stretches: list[Codes]) -> Codes:
    """Stretches in one array, an unknown base between them."""
    gap = np.array([UNKNOWN], dtype=np.uint8)
    return np.concatenate([piece for stretch in stretches for piece in (stretch, gap)] or [gap])
