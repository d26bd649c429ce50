"""What models that merely count make of the targets that a model is measured on.

    training FASTA --stretches--> Markov models with back-off ---\
    no training FASTA: the stream itself, from first to last ----+--> losses of the targets, block by block
    stream of windows --last occurrence of 16 bases--------------/

The stream is what the model may look at: the targets, and the context before each block. n bases of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hyena_ds.baselines.backoff import UNKNOWN, Codes, Earlier, Floats, Trained, backed_off, codes_of
from hyena_ds.baselines.compressors import MER, copy_losses, lzma_bits
from hyena_ds.errors import say
from hyena_ds.genome.fasta import Genome
from hyena_ds.predict.targets import Row, stream_of
from hyena_ds.predict.windows import TOKENS, Region, Window

MARKOV, COPY, LZMA, WEIGHT = "Markov", "copy", "LZMA", "weight"
"""What a row of sums is about."""
HIGHEST = 12
"""The longest order."""
_STRETCH = 1 << 22
"""Training bases that are counted at once; a count does not reach from one stretch into the next."""


def baseline_rows(
    genome: Genome,
    regions: Sequence[Region],
    blocks: Sequence[Window],
    context: int,
    training: tuple[Genome, Sequence[Region]] | None,
) -> list[Row]:
    """Sums of losses of every block under each baseline. Raises UserError where there is nothing to learn from."""
    codes_n, block_n = stream_of(genome, regions, blocks, context)
    target_n = (block_n >= 0) & (codes_n < UNKNOWN)
    if training is None:
        say("the Markov models learn online: each base is coded, then learnt from; name training bases with --train")
        losses_kn, weights = backed_off(Earlier(codes_n, HIGHEST), codes_n, HIGHEST, choose_n=block_n < 0)
        before_kn = losses_kn[:, (block_n < 0) & (codes_n < UNKNOWN)]
        best = int(np.argmin(before_kn.sum(1)))
    else:
        total = sum(region.end - region.start for region in training[1])
        trained = Trained.on(_stretches(*training), total, HIGHEST)
        losses_kn, weights, best = trained.losses(codes_n), trained.weights, int(np.argmin(trained.tuned_k))
        say(f"the Markov models learnt from {trained.bases:,} bases, both strands")
    rows: list[Row] = [(-1, WEIGHT, order, weight, 1, 0) for order, weight in enumerate(weights)]
    named = [(MARKOV, order, loss_n) for order, loss_n in enumerate(losses_kn)]
    named.append((COPY, MER, copy_losses(codes_n, losses_kn[best])))
    for about, at, loss_n in named:
        rows += _by_block(about, at, loss_n[target_n], block_n[target_n], len(blocks))
    targets = int(np.count_nonzero(target_n))
    rows.append((-1, LZMA, 0, lzma_bits(codes_n[target_n]) * targets * math.log(2), targets, 0))
    return rows


def _by_block(about: str, at: int, loss_m: Floats, block_m: NDArray[np.int32], blocks: int) -> list[Row]:
    sums_b = np.bincount(block_m, loss_m, minlength=blocks).tolist()
    counts_b = np.bincount(block_m, minlength=blocks).tolist()
    return [
        (number, about, at, loss, count, 0) for number, (loss, count) in enumerate(zip(sums_b, counts_b, strict=True))
    ]


def _stretches(genome: Genome, regions: Sequence[Region]) -> Iterator[Codes]:
    for region in regions:
        for start in range(region.start, region.end, _STRETCH):
            yield codes_of(TOKENS[genome.read(region.contig, start, min(start + _STRETCH, region.end))])
