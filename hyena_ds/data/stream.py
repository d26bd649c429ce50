"""The deterministic stream: which windows make up a step, as a pure function of (seed, stage, step).

    step --> sample numbers --> source (by weight) --> window (epoch order) --> strand
         --> for one rank: token slices of its row's samples, and the scored-token count of the whole step

Nothing here depends on the grid but the slicing at the end: any data parallel x sequence parallel, any number of
workers and any restart see the same tokens in the same order.

B sequences of the global batch, L context length, l local length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import DataConfig
from hyena_ds.data.order import hash64, permutation
from hyena_ds.data.remote.places import read_indices, reader
from hyena_ds.data.shards import ShardIndex
from hyena_ds.data.track import Origin, Track
from hyena_ds.data.windows import EpochOrder, Windows
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import SEP, reverse_complement

Drawn = TypeVar("Drawn")
_INTERLEAVE, _STRAND, _EPOCHS = range(3)  # what a hash is for
_INTERLEAVE_BLOCK = 1000
"""Samples within which every source gets exactly its share."""


@dataclass(frozen=True)
class Sample:
    """One sequence of a step: `bases` positions from `start` of a source, on a strand."""

    source: int
    start: int
    reverse: bool


@dataclass(frozen=True)
class Epoch:
    """One reading of a source within a stage."""

    source: int
    number: int
    first_sample: int
    """Number within the stage's samples of the first that it gives."""
    windows: int
    shards: tuple[str, ...]
    """Files in their order; windows are shuffled within groups of `shuffle_shards` of them."""


class Sources:
    """The shard sets of a run, opened for one split."""

    def __init__(self, config: DataConfig, split: str, indices: list[ShardIndex] | None = None):
        self.config = config
        self.tracks = [
            Track(source.shards, split, config.ignore, index, partial(reader, source.shards, config.cache))
            for source, index in zip(config.sources, indices or read_indices(config), strict=True)
        ]

    def bases(self, context_length: int) -> int:
        """Bases of a sample: L + 1 tokens, of which the last may be the end token."""
        return context_length + (0 if self.config.append_end_token else 1)

    def windows(self, context_length: int) -> list[Windows]:
        """The windows of each source at a context length in tokens."""
        return [Windows(track, context_length, self.bases(context_length)) for track in self.tracks]

    def tokens(self, sample: Sample, context_length: int, offset: int, length: int) -> NDArray[np.uint8]:
        """Token ids [offset, offset + length) of the sample's L + 1, reading no more than those."""
        bases = self.bases(context_length)
        end = min(offset + length, bases)
        track = self.tracks[sample.source]
        if sample.reverse:
            ids = reverse_complement(track.read(sample.start + bases - end, end - offset))
        else:
            ids = track.read(sample.start + offset, end - offset)
        return np.append(ids, np.uint8(SEP)) if end < offset + length else ids

    def scored(self, samples: list[Sample], context_length: int) -> int:
        """Scored targets of `samples`, from the index alone: targets are a sample's tokens 1 .. L."""
        total = 0
        end_token = int(self.config.append_end_token)
        for source in sorted({sample.source for sample in samples}):
            mine = [sample for sample in samples if sample.source == source]
            # A sample's first base is never a target; on the other strand it is the window's last.
            starts = np.array([s.start + (not s.reverse) for s in mine], dtype=np.int64)
            scored = self.tracks[source].scored(starts, starts + context_length - end_token)
            total += int(scored.sum()) + end_token * len(mine)
        return total

    def origin(self, sample: Sample, context_length: int) -> Origin:
        """Where a sample of `context_length` tokens comes from: chromosome, coordinates, strand."""
        track = self.tracks[sample.source]
        return track.origin(sample.start, self.bases(context_length), "-" if sample.reverse else "+")


class StageStream:
    """The steps of one stage, numbered from 0 within the stage."""

    def __init__(self, sources: Sources, seed: int, plan: StagePlan):
        self.sources = sources
        self.plan = plan
        self.context_length = plan.config.context_length
        self._key = (seed, plan.number)
        config = sources.config
        self.orders = [
            EpochOrder(windows, config.shuffle_shards, config.random_offset, (*self._key, _EPOCHS, number))
            for number, windows in enumerate(sources.windows(self.context_length))
        ]
        self._quotas = _quotas([source.weight for source in config.sources])
        self._interleaved = lru_cache(maxsize=2)(self._interleaved_uncached)

    def samples(self, step: int) -> list[Sample]:
        """The global batch of a step, in order."""
        first = step * self.plan.config.sequences
        return [self._sample(number) for number in range(first, first + self.plan.config.sequences)]

    def epoch(self, number: int) -> tuple[int, int]:
        """Source and epoch of sample `number` of the stage."""
        source, drawn = self._drawn(number)
        return source, drawn // self.orders[source].windows.count

    def epochs(self, most: int) -> list[Epoch]:
        """The epochs that the stage begins, `most` of each source, in the order of their first samples."""
        total = self.plan.config.step_count * self.plan.config.sequences
        found = []
        for source, order in enumerate(self.orders):
            for number in range(most):
                first = self._number(source, number * order.windows.count)
                if first >= total:
                    break
                found.append(Epoch(source, number, first, order.windows.count, tuple(order.shards(number))))
        return sorted(found, key=lambda epoch: epoch.first_sample)

    def groups(self, step: int) -> list[tuple[list[str], list[str]]]:
        """For each source, the files of the group of shards that `step` draws from, and of the group after it."""
        first = step * self.plan.config.sequences
        return [order.groups(self._drawn_before(first, source)) for source, order in enumerate(self.orders)]

    def _drawn(self, number: int) -> tuple[int, int]:
        """Source of sample `number` of the stage, and how many samples that source gave before."""
        block, within = divmod(number, _INTERLEAVE_BLOCK)
        source = int(self._interleaved(block)[within])
        return source, self._drawn_before(number, source)

    def _drawn_before(self, number: int, source: int) -> int:
        """How many samples `source` gives before sample `number` of the stage."""
        block, within = divmod(number, _INTERLEAVE_BLOCK)
        return block * self._quotas[source] + int((self._interleaved(block)[:within] == source).sum())

    def _number(self, source: int, drawn: int) -> int:
        """The inverse of `_drawn`: the sample of the stage that is the source's number `drawn`."""
        block, within = divmod(drawn, self._quotas[source])
        return block * _INTERLEAVE_BLOCK + int(np.flatnonzero(self._interleaved(block) == source)[within])

    def _interleaved_uncached(self, block: int) -> NDArray[np.int64]:
        """The sources of the samples of a block."""
        sources = np.repeat(np.arange(len(self._quotas)), self._quotas)
        return sources[permutation(_INTERLEAVE_BLOCK, *self._key, _INTERLEAVE, block)]

    def _sample(self, number: int) -> Sample:
        source, drawn = self._drawn(number)
        strand = self.sources.config.reverse_complement and int(hash64(*self._key, _STRAND, source, drawn)) & 1
        return Sample(source, self.orders[source].start(drawn), bool(strand))


def row_samples(samples: Sequence[Drawn], plan: StagePlan, row: int, micro_step: int) -> tuple[list[int], list[Drawn]]:
    """Numbers within the step, and samples, of one micro step on one data-parallel row."""
    size = plan.micro_batch_size
    first = (micro_step * plan.data_parallel + row) * size
    return list(range(first, first + size)), list(samples[first : first + size])


def validation_samples(sources: Sources, context_length: int, count: int) -> list[Sample]:
    """At most `count` held-out windows, evenly spread, always the same for a context length; forward strand, no offset."""
    every = sources.windows(context_length)
    before = np.cumsum([0, *(windows.count for windows in every)])
    total = int(before[-1])
    numbers = np.array([i * total // count for i in range(count)] if total > count else range(total), dtype=np.int64)
    found = []
    for number, windows in enumerate(every):
        own = numbers[(numbers >= before[number]) & (numbers < before[number + 1])] - before[number]
        found += [Sample(number, int(start), False) for start in windows.starts(windows.kept(own))]
    return found


def _quotas(weights: list[float]) -> list[int]:
    """Samples of each source in a block, by largest remainder. Raises UserError when a weight rounds to none."""
    shares = [weight / sum(weights) * _INTERLEAVE_BLOCK for weight in weights]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: quotas[i] - shares[i])
    for i in by_remainder[: _INTERLEAVE_BLOCK - sum(quotas)]:
        quotas[i] += 1
    if min(quotas) == 0:
        raise UserError(
            f"data.sources: found weights {weights}, of which one is less than 1/{_INTERLEAVE_BLOCK} of the sum; "
            "raise it or leave the source out"
        )
    return quotas
