"""The shard contract: what `data_prep` writes and the trainer reads.

    DIRECTORY/index.json          every chunk: where its tokens lie (shard, byte offset), where they come from
    DIRECTORY/train-000000.tar    WebDataset: per chunk KEY.tokens (uint8 ids) and KEY.json (the chunk's metadata)

Any WebDataset reader opens the tars; the trainer reads them by index. Coordinates are 0-based and half-open, in bases.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_ds.data.chunks import BEYOND, Chunks, is_text, read_chunks
from hyena_ds.errors import LocalError, UserError
from hyena_ds.genome.splits import SPLITS

INDEX_NAME = "index.json"
FORMAT = "hyena-ds shards 1"
MOST_BYTES = 2**30
"""An index in a directory may have so many: a few million chunks."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    file: str
    split: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Everything known about a directory of shards. Chunks are ordered by shard, then by offset."""

    assembly: str
    chunk_length: int
    shards: tuple[Shard, ...]
    chunks: Chunks

    @property
    def fingerprint(self) -> str:
        """The same for equal indices; another process can compare it, another version may not."""
        digest = hashlib.sha256(f"{self.assembly!r} {self.chunk_length} {self.shards!r}".encode())
        digest.update(self.chunks.fingerprint.encode())
        return digest.hexdigest()

    def to_json(self, rows: Sequence[str] | None = None) -> str:
        """Deterministic text: one chunk or shard a line. `rows` are the chunks' where they are made already."""
        chunks = self.chunks.json_rows() if rows is None else rows
        return (
            f'{{\n"format": {json.dumps(FORMAT)},\n"assembly": {json.dumps(self.assembly)},\n'
            f'"chunk_length": {self.chunk_length},\n'
            f'"shards": {json_lines(json.dumps(vars(shard)) for shard in self.shards)},\n"chunks": {json_lines(chunks)}\n}}\n'
        )


def json_lines(rows: Iterable[str]) -> str:
    """A JSON list of these texts, one a line."""
    return "[\n" + ",\n".join(rows) + "\n]"


def read_index(directory: str | Path) -> ShardIndex:
    """Read and check DIRECTORY/index.json, and that exactly the tars it lists are there with their sizes.

    Raises UserError when the directory, the index or a shard is missing, cut short, or not in the index.
    """
    directory = Path(directory)
    path = directory / INDEX_NAME
    try:
        if not path.is_file():
            raise UserError(
                f"{directory}: found no {INDEX_NAME}, wanted a directory of shards; write one with `hyena-ds prep`"
            )
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{path}: found {size:,} bytes, wanted at most {MOST_BYTES:,}; prepare the shards again in longer chunks"
            )
        index = parse_index(path.read_bytes(), str(path))
        _check_files(directory, index)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read ({error.strerror}); make the directory of shards readable"
        ) from None
    return index


def parse_index(text: bytes, where: str) -> ShardIndex:
    """The index that `text` holds; `where` names it in messages. Raises UserError when it is none.

    Whoever wrote it is not trusted: types, ranges and names are checked here, and nowhere else.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
        if raw["format"] != FORMAT:
            raise UserError(f"{where}: found format '{raw['format']}', wanted '{FORMAT}'; prepare the shards again")
        if not (type(raw["shards"]) is list and type(raw["chunks"]) is list):
            raise ValueError("wanted lists of shards and chunks")
        index = ShardIndex(
            assembly=raw["assembly"],
            chunk_length=raw["chunk_length"],
            shards=tuple(Shard(**shard) for shard in raw["shards"]),
            chunks=Chunks(),
        )
        _check_shards(index)
        places = [(shard.bytes, shard.split) for shard in index.shards]
        index = dataclasses.replace(index, chunks=read_chunks(raw["chunks"], places))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a readable index ({error}); prepare the shards again") from None
    except RecursionError:
        raise UserError(f"{where}: not a readable index (nested too deeply); prepare the shards again") from None
    return index


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, wanted numbers")


def _check_shards(index: ShardIndex) -> None:
    """Raise ValueError unless every shard is a file of the directory itself, of a size and checksum that can be."""
    if not is_text(index.assembly):
        raise ValueError("assembly: wanted a name")
    if not (type(index.chunk_length) is int and 0 < index.chunk_length < BEYOND):
        raise ValueError("chunk_length: wanted a number of bases")
    total = 0
    for shard in index.shards:
        named = type(shard.file) is str and _PLAIN_NAME.fullmatch(shard.file)
        summed = type(shard.sha256) is str and _SHA256.fullmatch(shard.sha256)
        if not (named and summed and type(shard.bytes) is int and shard.bytes > 0):
            raise ValueError(f"shard '{shard.file}' has no plain name, size and SHA-256")
        if shard.split not in SPLITS:
            raise ValueError(f"shard '{shard.file}' is of the split '{shard.split}', wanted {' or '.join(SPLITS)}")
        total += shard.bytes
        if total >= BEYOND:
            raise ValueError(f"shard '{shard.file}' makes them {total} bytes in all")
    if len({shard.file for shard in index.shards}) < len(index.shards):
        raise ValueError("a shard is listed twice")


def _check_files(directory: Path, index: ShardIndex) -> None:
    listed = {shard.file for shard in index.shards}
    for stranger in sorted(path.name for path in directory.glob("*.tar") if path.name not in listed):
        raise UserError(
            f"{directory / stranger}: found a shard that {INDEX_NAME} does not list; move it away or prepare the shards again"
        )
    for shard in index.shards:
        path = directory / shard.file
        found = _state(path)
        if found is None or not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: {INDEX_NAME} lists this shard, but the file is missing; prepare the shards again")
        size = found.st_size
        if size != shard.bytes:
            raise UserError(f"{path}: found {size} bytes, wanted {shard.bytes}; copy or prepare the shards again")


def _state(path: Path) -> os.stat_result | None:
    """None where there is no such file. Raises OSError where that cannot be told."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_shard(directory: str | Path, shard: Shard) -> None:
    """Raise UserError unless the shard's bytes have the checksum of the index."""
    if sha256_of(Path(directory) / shard.file) != shard.sha256:
        raise damaged(directory, shard)


def damaged(directory: str | Path, shard: Shard) -> UserError:
    """What is said of a shard that has another checksum than the index."""
    return UserError(
        f"{Path(directory) / shard.file}: the bytes do not match the SHA-256 in {INDEX_NAME}: the shard is damaged; "
        "copy or prepare the shards again"
    )


def map_tokens(directory: str | Path, shard: Shard) -> NDArray[np.uint8]:
    """The whole tar as a read-only memory map; a chunk's tokens are `[offset : offset + length]`."""
    return np.memmap(Path(directory) / shard.file, dtype=np.uint8, mode="r")


Reader = Callable[[NDArray[np.uint8], int], None]
"""read(ids, offset): fill `ids` with a shard's bytes from `offset` on. Raises LocalError, naming it, when they cannot be had."""


def read_fully(file: int, ids: NDArray[np.uint8], offset: int) -> None:
    """Fill `ids` with the bytes of an open file from `offset` on. Raises OSError, also where the file ends before."""
    view = memoryview(ids)  # type: ignore[arg-type]  # numpy 2.4's own types do not say that arrays are buffers
    while view:
        count = os.preadv(file, [view], offset)
        if count == 0:
            raise OSError(errno.EIO, f"it ends at byte {offset}")
        view, offset = view[count:], offset + count


class ShardReader:
    """One tar of a directory. Unlike a memory map it tells a file that went bad from a crash of the process."""

    def __init__(self, directory: str | Path, shard: Shard):
        self.path = Path(directory) / shard.file
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error.strerror) from None

    def read_into(self, ids: NDArray[np.uint8], offset: int) -> None:
        """Fill `ids` with the bytes from `offset` on. Raises LocalError, naming the shard, when they cannot be had."""
        try:
            read_fully(self._file.fileno(), ids, offset)
        except OSError as error:
            raise self._unreadable(error.strerror) from None

    def _unreadable(self, problem: str | None) -> UserError:
        return LocalError(
            f"{self.path}: the shard became unreadable ({problem or 'unknown error'}); make it readable, or copy or "
            "prepare it again, then start the same line again: the run continues"
        )
