"""Order-k Markov models of the same bases: what a language model must beat to have learnt more than k-mer counts.

    training bases --count (k+1)-mers, both strands if the model trains on both--> P(base | k bases before it)
    held-out windows --> mean negative log-likelihood over the targets that the model is scored on

One pseudo-count per base; a context cut short by a window's start or an unknown letter uses the order that is left.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hyena_ds.data.stream import Sample, Sources
from hyena_ds.data.track import Track
from hyena_ds.genome.tokenizer import A, T

_BLOCK = 1 << 22
Number = TypeVar("Number", np.float64, np.uint32)


def markov_losses(
    train: Sources, held_out: Sources, samples: list[Sample], context_length: int, orders: tuple[int, ...]
) -> dict[int, float]:
    """Nats per scored base on `samples` of `held_out`, for each order."""
    highest = max(orders)
    counts = np.sum([_count(track, highest) for track in train.tracks], axis=0)
    if train.config.reverse_complement:
        counts = counts + of_other_strand(counts, highest + 1)
    tables = log_tables(counts, highest)
    totals = dict.fromkeys(orders, 0.0)
    scored = 0
    for sample in samples:
        codes = held_out.tokens(sample, context_length, 0, held_out.bases(context_length)).astype(np.int64) - A
        count, sums = log_likelihoods(codes, tables, orders)
        scored += count
        for order in orders:
            totals[order] -= sums[order]
    return {order: total / max(1, scored) for order, total in totals.items()}


def log_likelihoods(
    codes: NDArray[np.int64], tables: list[NDArray[np.float64]], orders: tuple[int, ...]
) -> tuple[int, dict[int, float]]:
    """(how many letters count, the sum of their log-probabilities in nats for each order).

    Letters A C G T are 0 .. 3, all others unknown; a known one counts unless it is the first. `tables` are `log_tables` of
    the highest order or a higher one.
    """
    valid = (codes >= 0) & (codes <= T - A)
    targets = np.flatnonzero(valid[1:]) + 1
    # Bases in a row that are known, up to each position.
    last_unknown = np.maximum.accumulate(np.where(valid, -1, np.arange(len(codes))))
    before = targets - 1 - last_unknown[targets - 1]
    sums = dict.fromkeys(orders, 0.0)
    for order in orders:
        usable = np.minimum(before, order)
        for depth in range(order + 1):
            at = targets[usable == depth]
            index = np.zeros(len(at), dtype=np.int64)
            for back in range(depth, -1, -1):
                index = index * 4 + codes[at - back]
            sums[order] += float(tables[depth][index].sum())
    return len(targets), sums


def _count(track: Track, order: int) -> NDArray[np.float64]:
    """Counts of (order + 1)-mers that lie in one segment and hold only A C G T."""
    counts = np.zeros(4 ** (order + 1))
    for start, end in zip(track.segment_starts.tolist(), track.segment_ends.tolist(), strict=True):
        for block in range(start, end, _BLOCK):
            codes = track.read(block, min(block + _BLOCK + order, end) - block).astype(np.int64) - A
            counts += count_mers(codes, order)
    return counts


def count_mers(codes: NDArray[np.int64], order: int) -> NDArray[np.float64]:
    """Counts of the (order + 1)-mers of known letters, flat; the first letter counts most. Codes as in `log_likelihoods`."""
    if len(codes) <= order:
        return np.zeros(4 ** (order + 1))
    valid = (codes >= 0) & (codes <= T - A)
    length = len(codes) - order
    index = np.zeros(length, dtype=np.int64)
    whole = np.ones(length, dtype=bool)
    for k in range(order + 1):
        index = index * 4 + codes[k : k + length]
        whole &= valid[k : k + length]
    return np.bincount(index[whole], minlength=4 ** (order + 1)).astype(np.float64)


def of_other_strand(counts: NDArray[Number], letters: int) -> NDArray[Number]:
    """Counts of the reverse complements: letters A C G T are 0 .. 3, so the complement of c is 3 - c."""
    table = counts.reshape((4,) * letters)
    return np.flip(table.transpose(*range(letters - 1, -1, -1))).reshape(-1)


def log_tables(counts: NDArray[np.float64], order: int) -> list[NDArray[np.float64]]:
    """log P(last letter | letters before) for orders 0 .. order, flat over (order + 1)-mers."""
    tables = []
    for depth in range(order + 1):
        mers = counts.reshape(-1, 4 ** (depth + 1)).sum(0).reshape(-1, 4) + 1.0
        tables.append(np.log(mers / mers.sum(1, keepdims=True)).reshape(-1))
    return tables


def bits(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)
