"""The plan of a prep: every chunk of every shard, known before the first base is written.

    regions --cut every chunk_length bases--> chunks --chunks_per_shard of one split--> shards

A shard depends on nothing but its own plan and the genome, so any process can write it, at any time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from hyena_ds.errors import UserError
from hyena_ds.genome.bed import Region

MOST_CHUNKS = 2_000_000
"""Their index has less than a gigabyte."""
NAME_LETTERS = 48
"""A tar's short header holds 100 bytes of a member's name."""


@dataclass(frozen=True, slots=True)
class PlannedChunk(Region):
    """A piece of a region; `number` counts the chunks of the whole plan."""

    number: int

    @property
    def key(self) -> str:
        """Name of its members: no dot, since WebDataset takes what follows the first one for the extension."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.chromosome)[:NAME_LETTERS]
        return f"{self.number:08d}-{name}-{self.start}"


@dataclass(frozen=True)
class PlannedShard:
    """The chunks of one tar, unless all of them turn out to hold only N."""

    position: int
    split: str
    chunks: tuple[PlannedChunk, ...]

    @property
    def bases(self) -> int:
        """Bases of the shard's chunks."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def name(self) -> str:
        """Name of the unfinished work's files; the final name counts only shards that hold something."""
        return f"{self.position:06d}-{self.split}"


def plan_shards(regions: tuple[Region, ...], chunk_length: int, chunks_per_shard: int) -> tuple[PlannedShard, ...]:
    """Cut ordered regions into chunks of `chunk_length` bases, the last of a region shorter, and group them.

    Raises UserError when they would be more than an index can list.
    """
    total = sum(-(-(region.end - region.start) // chunk_length) for region in regions)
    if total > MOST_CHUNKS:
        raise UserError(
            f"chunk_length: found {chunk_length:,}, which cuts the regions into {total:,} chunks, wanted at most "
            f"{MOST_CHUNKS:,}; raise it"
        )
    shards: list[PlannedShard] = []
    number = 0
    for split, group in groupby(regions, key=lambda region: region.split):
        chunks: list[PlannedChunk] = []
        for region in group:
            for start in range(region.start, region.end, chunk_length):
                end = min(start + chunk_length, region.end)
                chunks.append(PlannedChunk(region.chromosome, start, end, split, number))
                number += 1
        for first in range(0, len(chunks), chunks_per_shard):
            shards.append(PlannedShard(len(shards), split, tuple(chunks[first : first + chunks_per_shard])))
    return tuple(shards)
