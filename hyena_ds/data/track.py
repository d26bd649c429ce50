"""One split of one shard set as a single line of bases: where windows may lie, what they score, and reading them.

    chunks of a split, in index order --adjacent ones joined--> segments --end to end--> positions 0 .. length

A window never leaves its segment, so it never joins bases that are not neighbours in the genome; it may span chunks and
shards. Positions are int64 and count bases of the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_ds.data.chunks import Chunk, Chunks
from hyena_ds.data.remote.transfer import named
from hyena_ds.data.shards import Reader, Shard, ShardIndex, ShardReader, read_index
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
        chunks = self.index.chunks
        self._numbers = chunks.split.are(split)
        """Numbers in the index of the chunks of the split, ascending."""
        if not len(self._numbers):
            held = ", ".join(sorted(chunks.split.names)) or "nothing"
            raise UserError(
                f"{self.place}: found no '{split}' split (the shards hold: {held}); prepare shards with a '{split}' split"
            )
        self.chunk_starts: Positions = np.concatenate(([0], np.cumsum(chunks.lengths(self._numbers))))
        breaks = np.flatnonzero(~_adjacent(chunks, self._numbers))
        self.segment_starts: Positions = self.chunk_starts[breaks]
        self.segment_ends: Positions = np.append(self.segment_starts[1:], self.chunk_starts[-1])
        self._runs = _ignored_runs(chunks, self._numbers, self.chunk_starts, ignore)
        # Files beyond these are closed again: a system lets a process hold only so many.
        reader = open_ or (lambda shard: ShardReader(place, shard).read_into)
        self._reader = lru_cache(maxsize=_OPEN_FILES)(lambda number: reader(self.index.shards[number]))

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks of the split, in index order. They are made for it."""
        return [self.index.chunks[int(number)] for number in self._numbers]

    @property
    def chunk_shards(self) -> NDArray[np.int32]:
        """Position in the index of the shard of each chunk of the split."""
        found: NDArray[np.int32] = self.index.chunks.shard[self._numbers]
        return found

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
            take = min(length - filled, int(self.chunk_starts[number + 1]) - start - filled)
            chunk = int(self._numbers[number])
            begin = int(self.index.chunks.offset[chunk]) + within
            piece = ids[filled : filled + take]
            self._reader(int(self.index.chunks.shard[chunk]))(piece, begin)
            if piece.max() >= VOCABULARY:
                raise self._unknown_id(self.index.chunks[chunk], piece, begin)
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
        return [self.index.shards[shard].file for shard in dict.fromkeys(self.chunk_shards.tolist())]

    @cached_property
    def index_by_file(self) -> dict[str, Shard]:
        """Shards by the names of their files."""
        return {shard.file: shard for shard in self.index.shards}

    def shards(self, start: int, length: int) -> list[str]:
        """Files that hold the positions [start, start + length)."""
        first, last = np.searchsorted(self.chunk_starts, (start, start + length - 1), side="right") - 1
        shards = self.index.chunks.shard[self._numbers[first : last + 1]]
        return [self.index.shards[shard].file for shard in dict.fromkeys(shards.tolist())]

    def ignored_before(self, positions: Positions) -> Positions:
        """How many positions before each of `positions` hold a token that is not scored."""
        starts, lengths, before = self._runs
        run = np.searchsorted(starts, positions, side="right") - 1
        inside = np.minimum(positions - starts[run], lengths[run])
        total: NDArray[np.int64] = before[run] + inside
        return total

    def ignored_stretches(self, least: int) -> tuple[Positions, Positions]:
        """Starts and ends of the stretches, as long as they go, of at least `least` positions that are not scored."""
        starts, lengths, _ = self._runs
        ends = starts + lengths
        first = np.append(True, starts[1:] > ends[:-1])
        begin, end = starts[first], ends[np.append(first[1:], True)]
        long = (end - begin >= max(1, least)) & (begin >= 0)
        return begin[long], end[long]

    def scored(self, starts: Positions, ends: Positions) -> Positions:
        """Scored tokens in each of the ranges [start, end)."""
        return ends - starts - (self.ignored_before(ends) - self.ignored_before(starts))

    def origin(self, start: int, length: int, strand: str) -> Origin:
        """Genome coordinates of positions [start, start + length)."""
        number = int(np.searchsorted(self.chunk_starts, start, side="right")) - 1
        chunk = self.index.chunks[int(self._numbers[number])]
        first = chunk.start + start - int(self.chunk_starts[number])
        return Origin(chunk.assembly, chunk.chromosome, first, first + length, strand)


def _adjacent(chunks: Chunks, numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether each of these chunks goes on where the one before it ends; the first does not."""
    found = np.zeros(len(numbers), dtype=np.bool_)
    left, right = numbers[:-1], numbers[1:]
    found[1:] = chunks.end[left] == chunks.start[right]
    for column in (chunks.assembly, chunks.chromosome):
        found[1:] &= column.codes[left] == column.codes[right]
    return found


def _ignored_runs(
    chunks: Chunks, numbers: NDArray[np.int32], chunk_starts: Positions, ignore: tuple[str, ...]
) -> tuple[Positions, Positions, Positions]:
    """Starts, lengths, and ignored positions before each run; an empty run at -1 guards the left end."""
    starts, lengths = [np.array([-1])], [np.array([0])]
    for name, runs in (("n", chunks.n_runs), ("unknown", chunks.unknown_runs)):
        if name in ignore:
            pairs, chunk = runs.of(numbers)
            starts.append(chunk_starts[chunk] + pairs[:, 0])
            lengths.append(pairs[:, 1])
    order = np.argsort(np.concatenate(starts), kind="stable")
    in_order = np.concatenate(lengths)[order]
    return np.concatenate(starts)[order], in_order, np.concatenate(([0], np.cumsum(in_order)[:-1]))
