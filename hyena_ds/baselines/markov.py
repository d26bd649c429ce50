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
    tables = _tables(counts, highest)
    totals = dict.fromkeys(orders, 0.0)
    scored = 0
    for sample in samples:
        codes = held_out.tokens(sample, context_length, 0, held_out.bases(context_length)).astype(np.int64) - A
        valid = (codes >= 0) & (codes <= T - A)
        targets = np.flatnonzero(valid[1:]) + 1
        scored += len(targets)
        # Bases in a row that are known, up to each position.
        last_unknown = np.maximum.accumulate(np.where(valid, -1, np.arange(len(codes))))
        before = targets - 1 - last_unknown[targets - 1]
        for order in orders:
            usable = np.minimum(before, order)
            for depth in range(order + 1):
                at = targets[usable == depth]
                index = np.zeros(len(at), dtype=np.int64)
                for back in range(depth, -1, -1):
                    index = index * 4 + codes[at - back]
                totals[order] -= float(tables[depth][index].sum())
    return {order: total / max(1, scored) for order, total in totals.items()}


def _count(track: Track, order: int) -> NDArray[np.float64]:
    """Counts of (order + 1)-mers that lie in one segment and hold only A C G T."""
    counts = np.zeros(4 ** (order + 1))
    for start, end in zip(track.segment_starts.tolist(), track.segment_ends.tolist(), strict=True):
        for block in range(start, end, _BLOCK):
            codes = track.read(block, min(block + _BLOCK + order, end) - block).astype(np.int64) - A
            if len(codes) <= order:
                continue
            valid = (codes >= 0) & (codes <= T - A)
            length = len(codes) - order
            index = np.zeros(length, dtype=np.int64)
            whole = np.ones(length, dtype=bool)
            for k in range(order + 1):
                index = index * 4 + codes[k : k + length]
                whole &= valid[k : k + length]
            counts += np.bincount(index[whole], minlength=len(counts))
    return counts


def of_other_strand(counts: NDArray[Number], letters: int) -> NDArray[Number]:
    """Counts of the reverse complements: letters A C G T are 0 .. 3, so the complement of c is 3 - c."""
    table = counts.reshape((4,) * letters)
    return np.flip(table.transpose(*range(letters - 1, -1, -1))).reshape(-1)


def _tables(counts: NDArray[np.float64], order: int) -> list[NDArray[np.float64]]:
    """log P(last letter | letters before) for orders 0 .. order, flat over (order + 1)-mers."""
    tables = []
    for depth in range(order + 1):
        mers = counts.reshape(-1, 4 ** (depth + 1)).sum(0).reshape(-1, 4) + 1.0
        tables.append(np.log(mers / mers.sum(1, keepdims=True)).reshape(-1))
    return tables


def bits(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)
