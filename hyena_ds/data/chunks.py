"""The chunks of a shard index, millions of them if need be: kept in columns, each made into a value when it is asked for.

JSON rows --checked_chunks--> Chunk, Chunk, ... --Chunks--> columns of some 90 bytes a chunk; chunks[i] --> Chunk
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

BEYOND = 2**62
"""No coordinate, size or sum of sizes reaches it: they are counted in 64 bits."""


@dataclass(frozen=True)
class Chunk:
    """One member pair: a run of bases of one chromosome."""

    key: str
    shard: int
    """Position in `ShardIndex.shards`."""
    offset: int
    """Byte of the tar at which the tokens begin; one byte a base, `end - start` of them."""
    assembly: str
    chromosome: str
    start: int
    end: int
    split: str
    soft_masked: float
    """Fraction of bases that were lower case."""
    n_fraction: float
    n_runs: tuple[tuple[int, int], ...]
    """Runs (start, length) of N, relative to the chunk."""
    unknown_runs: tuple[tuple[int, int], ...]
    """Runs (start, length) of tokens that are neither A C G T nor N, relative to the chunk."""

    @property
    def length(self) -> int:
        """Bases of the chunk."""
        return self.end - self.start

    def metadata(self) -> dict[str, Any]:
        """What KEY.json holds: everything but the place in the tar."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("shard", "offset")}


_FIELDS = tuple(field.name for field in dataclasses.fields(Chunk))
_FRACTIONS = ("soft_masked", "n_fraction")


class Chunks(Sequence[Chunk]):
    """A read-only sequence of chunks. Pickled, copied and compared as a few arrays."""

    def __init__(self, chunks: Iterable[Chunk] = ()):
        rows = list(chunks)
        self._fill({name: [getattr(chunk, name) for chunk in rows] for name in _FIELDS})

    @classmethod
    def of_columns(cls, columns: Mapping[str, list[Any]]) -> Chunks:
        """Chunks from the values of each field of `Chunk`."""
        made = cls.__new__(cls)
        made._fill(columns)
        return made

    def _fill(self, columns: Mapping[str, list[Any]]) -> None:
        self.shard = np.array(columns["shard"], dtype=np.int32)
        """Position in `ShardIndex.shards` of each; as are the others, a column of the values of `Chunk`."""
        self.offset, self.start, self.end = (
            np.array(columns[name], dtype=np.int64) for name in ("offset", "start", "end")
        )
        self.soft_masked, self.n_fraction = (np.array(columns[name], dtype=np.float64) for name in _FRACTIONS)
        self.keys = _Texts(columns["key"])
        self.assembly, self.chromosome, self.split = (
            _Names(columns[name]) for name in ("assembly", "chromosome", "split")
        )
        self.n_runs, self.unknown_runs = _Runs(columns["n_runs"]), _Runs(columns["unknown_runs"])
        self._whole = {
            (number, name): value
            for name in _FRACTIONS
            for number, value in enumerate(columns[name])
            if type(value) is int
        }
        """Fractions that were written without a point, as 0: their text would be another one."""

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, number: int) -> Chunk: ...
    @overload
    def __getitem__(self, number: slice) -> list[Chunk]: ...
    def __getitem__(self, number: int | slice) -> Chunk | list[Chunk]:
        if isinstance(number, slice):
            return [self._chunk(each) for each in range(*number.indices(len(self)))]
        return self._chunk(range(len(self))[number])

    def __iter__(self) -> Iterator[Chunk]:
        return map(self._chunk, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chunks) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def nbytes(self) -> int:
        """Memory that the columns take."""
        return sum(array.nbytes for array in self._arrays())

    @cached_property
    def fingerprint(self) -> str:
        """A digest that is the same for equal chunks."""
        digest = hashlib.sha256()
        for array in self._arrays():
            digest.update(f"{array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        names = [list(column.names) for column in (self.assembly, self.chromosome, self.split)]
        digest.update(repr((names, sorted(self._whole.items()))).encode())
        return digest.hexdigest()

    def json_rows(self) -> Iterator[str]:
        """For each the text of `json.dumps(vars(chunk))`, without the chunk."""
        names = [list(map(json.dumps, column.names)) for column in (self.assembly, self.chromosome, self.split)]
        codes = [column.codes.tolist() for column in (self.assembly, self.chromosome, self.split)]
        numbers = [column.tolist() for column in (self.shard, self.offset, self.start, self.end)]
        fractions = {name: getattr(self, name).tolist() for name in ("soft_masked", "n_fraction")}
        for (number, name), value in self._whole.items():
            fractions[name][number] = value
        runs = [column.json_rows() for column in (self.n_runs, self.unknown_runs)]
        columns = zip(*numbers, *codes, *fractions.values(), *runs, strict=True)
        for number, (shard, offset, start, end, assembly, chromosome, split, soft, n, n_runs, unknown) in enumerate(
            columns
        ):
            yield (
                f'{{"key": {json.dumps(self.keys[number])}, "shard": {shard}, "offset": {offset}, '
                f'"assembly": {names[0][assembly]}, "chromosome": {names[1][chromosome]}, "start": {start}, "end": {end}, '
                f'"split": {names[2][split]}, "soft_masked": {soft!r}, "n_fraction": {n!r}, '
                f'"n_runs": {n_runs}, "unknown_runs": {unknown}}}'
            )

    def lengths(self, numbers: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bases of each of these chunks."""
        found: NDArray[np.int64] = self.end[numbers] - self.start[numbers]
        return found

    def _chunk(self, number: int) -> Chunk:
        return Chunk(
            key=self.keys[number],
            shard=int(self.shard[number]),
            offset=int(self.offset[number]),
            assembly=self.assembly[number],
            chromosome=self.chromosome[number],
            start=int(self.start[number]),
            end=int(self.end[number]),
            split=self.split[number],
            soft_masked=self._whole.get((number, "soft_masked"), float(self.soft_masked[number])),
            n_fraction=self._whole.get((number, "n_fraction"), float(self.n_fraction[number])),
            n_runs=self.n_runs[number],
            unknown_runs=self.unknown_runs[number],
        )

    def _arrays(self) -> Iterator[NDArray[Any]]:
        yield from (self.shard, self.offset, self.start, self.end, self.soft_masked, self.n_fraction)
        yield from (self.keys.text, self.keys.ends)
        yield from (column.codes for column in (self.assembly, self.chromosome, self.split))
        for runs in (self.n_runs, self.unknown_runs):
            yield from (runs.pairs, runs.ends)


class _Texts(Sequence[str]):
    """Texts, end to end."""

    def __init__(self, texts: Sequence[str]):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # of no slice
        text = self.text[self.ends[number] : self.ends[number + 1]]
        found: str = text.tobytes().decode("utf-8", "surrogatepass")
        return found


class _Names:
    """Texts of which there are few different ones."""

    def __init__(self, texts: Sequence[str]):
        numbers = {name: number for number, name in enumerate(dict.fromkeys(texts))}
        self.names = tuple(numbers)
        self.codes = np.array([numbers[text] for text in texts], dtype=np.int32)

    def __getitem__(self, number: int) -> str:
        return self.names[int(self.codes[number])]

    def are(self, name: str) -> NDArray[np.int32]:
        """Numbers of the chunks that have this one."""
        if name not in self.names:
            return np.zeros(0, dtype=np.int32)
        return np.flatnonzero(self.codes == self.names.index(name)).astype(np.int32)


class _Runs:
    """Runs (start, length) of each chunk, end to end."""

    def __init__(self, runs: Sequence[Sequence[tuple[int, int]]]):
        self.pairs = np.array([pair for each in runs for pair in each], dtype=np.int64).reshape(-1, 2)
        self.ends = np.cumsum([0, *map(len, runs)], dtype=np.int64)

    def __getitem__(self, number: int) -> tuple[tuple[int, int], ...]:
        pairs = self.pairs[self.ends[number] : self.ends[number + 1]].tolist()
        return tuple((start, length) for start, length in pairs)

    def json_rows(self) -> Iterator[str]:
        """The runs of each chunk as JSON."""
        pairs, begin = self.pairs.tolist(), 0
        for end in self.ends[1:].tolist():
            yield "[]" if begin == end else json.dumps(pairs[begin:end])
            begin = end

    def of(self, numbers: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The runs of these chunks, in their order, and for each the position in `numbers` of its chunk."""
        counts = self.ends[numbers + 1] - self.ends[numbers]
        chunk = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(len(chunk)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.pairs[self.ends[numbers][chunk] + within], chunk


def chunk_from(raw: dict[str, Any]) -> Chunk:
    """The chunk of a JSON object, whose types are not looked at."""
    runs = {name: tuple((start, length) for start, length in raw[name]) for name in ("n_runs", "unknown_runs")}
    return Chunk(**{**raw, **runs})


def read_chunks(raw: Sequence[dict[str, Any]], shards: Sequence[tuple[int, str]]) -> Chunks:
    """The chunks of JSON rows. Raises as `checked_chunks`, which says what is wrong; what is right is seen at once here."""
    try:
        if all(type(row) is dict and row.keys() == set(_FIELDS) for row in raw):
            columns = {name: [row[name] for row in raw] for name in _FIELDS}
            if _are_right(columns, shards):
                return Chunks.of_columns(columns)
    except (ValueError, TypeError, OverflowError):
        pass
    return Chunks(checked_chunks(raw, shards))


def _are_right(columns: Mapping[str, list[Any]], shards: Sequence[tuple[int, str]]) -> bool:
    """Whether `checked_chunks` would find nothing wrong; may raise ValueError, TypeError or OverflowError where it would."""
    kinds = {name: set(map(type, values)) for name, values in columns.items()}
    places, texts = ("shard", "offset", "start", "end"), ("key", "assembly", "chromosome", "split")
    if any(kinds[name] - {int} for name in places) or any(kinds[name] - {str} for name in texts):
        return False
    if any(kinds[name] - {int, float} for name in _FRACTIONS) or any(
        kinds[n] - {list} for n in ("n_runs", "unknown_runs")
    ):
        return False
    shard, offset, start, end = (np.array(columns[name], dtype=np.int64) for name in places)
    if not (((start >= 0) & (start < end) & (end < BEYOND)).all() and ((shard >= 0) & (shard < len(shards))).all()):
        return False
    sizes, length = np.array([size for size, _ in shards], dtype=np.int64)[shard], end - start
    inside = (offset >= 0) & (offset <= sizes - length)
    after = (shard[1:] > shard[:-1]) | ((shard[1:] == shard[:-1]) & (offset[1:] >= offset[:-1] + length[:-1]))
    fractions = np.array([columns[name] for name in _FRACTIONS], dtype=np.float64)
    if not (inside.all() and after.all() and ((fractions >= 0) & (fractions <= 1)).all()):
        return False
    if [shards[number][1] for number in columns["shard"]] != columns["split"] or not all(
        map(all, (columns[n] for n in texts))
    ):
        return False
    for number, runs in enumerate(zip(columns["n_runs"], columns["unknown_runs"], strict=True)):
        if any(runs):
            _check(chunk_from({name: columns[name][number] for name in _FIELDS}), shards)
    return len(set(columns["key"])) == len(shard)


def checked_chunks(raw: Sequence[dict[str, Any]], shards: Sequence[tuple[int, str]]) -> Iterator[Chunk]:
    """The chunks of JSON rows, where each lies inside its shard, of these (bytes, split), after and clear of the one before it.

    Raises ValueError, TypeError or KeyError where one does not.
    """
    last, free, keys = 0, 0, set()
    for row in raw:
        chunk = chunk_from(row)
        _check(chunk, shards)
        if chunk.shard < last or (chunk.shard == last and chunk.offset < free):
            raise ValueError(f"chunk '{chunk.key}' lies before the end of the chunk above it")
        last, free = chunk.shard, chunk.offset + chunk.length
        keys.add(chunk.key)
        yield chunk
    if len(keys) < len(raw):
        raise ValueError("two chunks have one key")


def _check(chunk: Chunk, shards: Sequence[tuple[int, str]]) -> None:
    if any(type(number) is not int for number in (chunk.shard, chunk.offset, chunk.start, chunk.end)):
        raise ValueError(f"chunk '{chunk.key}' has a place that is no whole number")
    if not 0 <= chunk.start < chunk.end < BEYOND:
        raise ValueError(f"chunk '{chunk.key}' has the bases {chunk.start} to {chunk.end}")
    if not (
        0 <= chunk.shard < len(shards)
        and 0 <= chunk.offset <= shards[chunk.shard][0] - chunk.length
        and chunk.split == shards[chunk.shard][1]
    ):
        raise ValueError(f"chunk '{chunk.key}' does not lie in its shard")
    if not (is_text(chunk.key) and is_text(chunk.assembly) and is_text(chunk.chromosome)):
        raise ValueError(f"chunk '{chunk.key}' has no key, assembly and chromosome")
    if not (_is_share(chunk.soft_masked) and _is_share(chunk.n_fraction)):
        raise ValueError(f"chunk '{chunk.key}' has a fraction that is not within 0 and 1")
    if (chunk.n_runs or chunk.unknown_runs) and not _are_runs(chunk):
        raise ValueError(f"chunk '{chunk.key}' has runs of N or unknown that are unsorted, overlap or lie outside")


def is_text(value: object) -> bool:
    """Whether it is a text that names something."""
    return type(value) is str and value != ""


def _is_share(value: object) -> bool:
    return type(value) in (float, int) and 0 <= value <= 1  # type: ignore[operator]


def _are_runs(chunk: Chunk) -> bool:
    """Whether the runs are sorted pieces of the chunk, and no base is in two of them."""
    for runs in (chunk.n_runs, chunk.unknown_runs):
        end = 0
        for start, run in runs:
            if not (type(start) is int and type(run) is int and end <= start and run > 0):
                return False
            end = start + run
        if end > chunk.length:
            return False
    both = sorted(chunk.n_runs + chunk.unknown_runs) if chunk.n_runs and chunk.unknown_runs else []
    return all(left[0] + left[1] <= right[0] for left, right in pairwise(both))
