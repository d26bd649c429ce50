"""One split of one shard set as a single line of bases: where windows may lie, what they score, and reading them.

    chunks of a split, in index order --adjacent ones joined--> segments --end to end--> positions 0 .. length

A window never leaves its segment, so it never joins bases that are not neighbours in the genome; it may span chunks and
shards. Positions are int64 and count bases of the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_ds.data.remote.transfer import named
from hyena_ds.data.shards import Chunk, Reader, Shard, ShardIndex, ShardReader, read_index
from hyena_ds.errors import LocalError, UserError
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.redaction import shown

Positions = NDArray[np.int64]
_OPEN_FILES = 64


@dataclass(frozen=True)
class Origin:
    """Where a sample comes from: 0-based half-open bases of a chromosome, read on a strand ('+' or '-')."""

    assembly: str
    chromosome: str
    start: int
    end: int
    strand: str


class Track:
    """The bases of `split` in the shards at `place`; `ignore` says which tokens are not scored ('n', 'unknown').

    `index` and `open_` (what reads a shard) are those of a directory, unless they are handed in. Raises UserError when
    the index is damaged or the split is not in it.
    """

    def __init__(
        self,
        place: str | Path,
        split: str,
        ignore: tuple[str, ...],
        index: ShardIndex | None = None,
        open_: Callable[[Shard], Reader] | None = None,
    ):
        self.place = shown(str(place))
        self.split = split
        self.index = index or read_index(place)
        self.chunks: list[Chunk] = [chunk for chunk in self.index.chunks if chunk.split == split]
        if not self.chunks:
            held = ", ".join(sorted({chunk.split for chunk in self.index.chunks})) or "nothing"
            raise UserError(
                f"{self.place}: found no '{split}' split (the shards hold: {held}); prepare shards with a '{split}' split"
            )
        lengths = np.array([chunk.length for chunk in self.chunks], dtype=np.int64)
        self.chunk_starts: Positions = np.concatenate(([0], np.cumsum(lengths)))
        breaks = [i for i, chunk in enumerate(self.chunks) if i == 0 or not _adjacent(self.chunks[i - 1], chunk)]
        self.segment_starts: Positions = self.chunk_starts[breaks]
        self.segment_ends: Positions = np.append(self.segment_starts[1:], self.chunk_starts[-1])
        self._runs = _ignored_runs(self.chunks, self.chunk_starts, ignore)
        # Files beyond these are closed again: a system lets a process hold only so many.
        reader = open_ or (lambda shard: ShardReader(place, shard).read_into)
        self._reader = lru_cache(maxsize=_OPEN_FILES)(lambda number: reader(self.index.shards[number]))

    @property
    def length(self) -> int:
        """Bases of the split."""
        return int(self.chunk_starts[-1])

    def read(self, start: int, length: int) -> NDArray[np.uint8]:
        """Token ids of positions [start, start + length), copied out of as many shards as it takes.

        Raises LocalError, naming the shard and the byte, where an id is not of the vocabulary.
        """
        ids = np.empty(length, dtype=np.uint8)
        filled = 0
        number = int(np.searchsorted(self.chunk_starts, start, side="right")) - 1
        while filled < length:
            within = start + filled - int(self.chunk_starts[number])
            take = min(length - filled, self.chunks[number].length - within)
            begin = self.chunks[number].offset + within
            piece = ids[filled : filled + take]
            self._reader(self.chunks[number].shard)(piece, begin)
            if piece.max() >= VOCABULARY:
                raise self._unknown_id(self.chunks[number], piece, begin)
            filled += take
            number += 1
        return ids

    def _unknown_id(self, chunk: Chunk, ids: NDArray[np.uint8], begin: int) -> LocalError:
        at, file = int(np.argmax(ids >= VOCABULARY)), self.index.shards[chunk.shard].file
        return LocalError(
            f"{named(self.place, file)}: found the token {ids[at]} at byte "
            f"{begin + at}, wanted ids below {VOCABULARY}; the shard is damaged or was not made by `hyena-ds prep`: "
            "prepare it again"
        )

    @property
    def shard_files(self) -> list[str]:
        """Files that hold bases of the split, in index order."""
        return list(dict.fromkeys(self.index.shards[chunk.shard].file for chunk in self.chunks))

    @property
    def index_by_file(self) -> dict[str, Shard]:
        """Shards by the names of their files."""
        return {shard.file: shard for shard in self.index.shards}

    def shards(self, start: int, length: int) -> list[str]:
        """Files that hold the positions [start, start + length)."""
        first, last = np.searchsorted(self.chunk_starts, (start, start + length - 1), side="right") - 1
        return list(dict.fromkeys(self.index.shards[chunk.shard].file for chunk in self.chunks[first : last + 1]))

    def ignored_before(self, positions: Positions) -> Positions:
        """How many positions before each of `positions` hold a token that is not scored."""
        starts, lengths, before = self._runs
        run = np.searchsorted(starts, positions, side="right") - 1
        inside = np.minimum(positions - starts[run], lengths[run])
        total: NDArray[np.int64] = before[run] + inside
        return total

    def scored(self, starts: Positions, ends: Positions) -> Positions:
        """Scored tokens in each of the ranges [start, end)."""
        return ends - starts - (self.ignored_before(ends) - self.ignored_before(starts))

    def origin(self, start: int, length: int, strand: str) -> Origin:
        """Genome coordinates of positions [start, start + length)."""
        number = int(np.searchsorted(self.chunk_starts, start, side="right")) - 1
        chunk = self.chunks[number]
        first = chunk.start + start - int(self.chunk_starts[number])
        return Origin(chunk.assembly, chunk.chromosome, first, first + length, strand)


def _adjacent(left: Chunk, right: Chunk) -> bool:
    same = (left.assembly, left.chromosome) == (right.assembly, right.chromosome)
    return same and left.end == right.start


def _ignored_runs(
    chunks: list[Chunk], chunk_starts: Positions, ignore: tuple[str, ...]
) -> tuple[Positions, Positions, Positions]:
    """Starts, lengths, and ignored positions before each run; an empty run at -1 guards the left end."""
    runs = [(-1, 0)]
    for chunk, base in zip(chunks, chunk_starts[:-1].tolist(), strict=True):
        here: list[tuple[int, int]] = []
        if "n" in ignore:
            here += chunk.n_runs
        if "unknown" in ignore:
            here += chunk.unknown_runs
        runs += [(base + start, length) for start, length in sorted(here)]
    table = np.array(runs, dtype=np.int64)
    starts, lengths = table[:, 0].copy(), table[:, 1].copy()
    return starts, lengths, np.concatenate(([0], np.cumsum(lengths)[:-1]))
