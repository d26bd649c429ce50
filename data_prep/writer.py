"""Writes one shard: the chunks of a plan, as a WebDataset tar and a record of what went into it.

    PlannedShard + Genome --letters to tokens--> WORK/NAME.tar, then WORK/NAME.json (ShardRecord)

The record is written last: where it exists, the tar is complete. The bytes are those of `webdataset.TarWriter` with a
fixed owner and time (a test compares them); the package itself is not used here, since importing it imports torch.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.plan import PlannedChunk, PlannedShard
from hyena_ds.data.shards import Chunk, sha256_of
from hyena_ds.files.whole import to_disk, write_whole
from hyena_ds.genome import letters, tokenizer
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import Bytes, Counts, LetterTable

OWNER = "hyena-ds"
MODE = 0o644


@dataclass(frozen=True)
class ShardRecord:
    """What the index and the summary need to know about a finished shard."""

    split: str
    bytes: int
    """Size of the tar; 0 when no chunk was left and there is no tar."""
    sha256: str
    chunks: tuple[Chunk, ...]
    """With `shard` still 0: its final place is known when all shards are."""
    dropped: tuple[tuple[str, int, int], ...]
    """(chromosome, start, end) of chunks that hold only N."""
    letters: dict[str, int]
    """Byte value -> occurrences in the chunks that were written."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        raw: dict[str, Any] = json.loads(text)
        raw["chunks"] = tuple(_chunk_from(chunk) for chunk in raw["chunks"])
        raw["dropped"] = tuple((name, start, end) for name, start, end in raw["dropped"])
        return cls(**raw)

    def letter_counts(self) -> Counts:
        counts = np.zeros(256, dtype=np.int64)
        for byte, count in self.letters.items():
            counts[int(byte)] = count
        return counts


def _chunk_from(raw: dict[str, Any]) -> Chunk:
    pairs = {name: tuple((start, length) for start, length in raw[name]) for name in ("n_runs", "unknown_runs")}
    return Chunk(**{**raw, **pairs})


def make_chunk(planned: PlannedChunk, assembly: str, text: Bytes, table: Bytes) -> tuple[Bytes, Chunk] | None:
    """Tokens and metadata of a chunk's letters, or None where they are all N."""
    tokens = table[text]
    is_n = tokens == tokenizer.N
    if np.all(is_n | letters.IS_N[text]):
        return None
    chunk = Chunk(
        key=planned.key,
        shard=0,
        offset=0,
        assembly=assembly,
        chromosome=planned.chromosome,
        start=planned.start,
        end=planned.end,
        split=planned.split,
        soft_masked=np.count_nonzero(letters.IS_LOWER[text]) / len(text),
        n_fraction=np.count_nonzero(is_n) / len(text),
        n_runs=letters.runs(is_n),
        unknown_runs=letters.runs(tokens == tokenizer.UNKNOWN),
    )
    return tokens, chunk


def write_shard(genome: Genome, planned: PlannedShard, assembly: str, table: LetterTable, work: Path) -> ShardRecord:
    """Write the planned shard into the directory `work`, then its record; replaces what an interrupted run left."""
    tar_path = work / f"{planned.name}.tar"
    unfinished = tar_path.with_suffix(".tar.tmp")
    tokens_by_byte = table.tokens()
    counts = np.zeros(256, dtype=np.int64)
    chunks: list[Chunk] = []
    dropped: list[tuple[str, int, int]] = []
    try:
        with unfinished.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for item in planned.chunks:
                    text = genome.read(item.chromosome, item.start, item.end)
                    made = make_chunk(item, assembly, text, tokens_by_byte)
                    if made is None:
                        dropped.append((item.chromosome, item.start, item.end))
                        continue
                    tokens, chunk = made
                    counts += letters.count_letters(text)
                    _add(tar, f"{chunk.key}.json", json.dumps(chunk.metadata(), sort_keys=True).encode())
                    _add(tar, f"{chunk.key}.tokens", tokens.tobytes())
                    chunks.append(chunk)
            to_disk(file)
    except OSError:
        unfinished.unlink(missing_ok=True)  # a full disk is not left full
        raise
    if chunks:
        places = token_offsets(unfinished)
        chunks = [dataclasses.replace(chunk, offset=places[chunk.key]) for chunk in chunks]
        os.replace(unfinished, tar_path)
    else:
        unfinished.unlink()
    record = ShardRecord(
        split=planned.split,
        bytes=tar_path.stat().st_size if chunks else 0,
        sha256=sha256_of(tar_path) if chunks else "",
        chunks=tuple(chunks),
        dropped=tuple(dropped),
        letters={str(byte): int(counts[byte]) for byte in np.flatnonzero(counts)},
    )
    write_whole(work / f"{planned.name}.json", record.to_json())
    return record


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, MODE
    member.uname = member.gname = OWNER
    tar.addfile(member, io.BytesIO(data))


def token_offsets(path: Path) -> dict[str, int]:
    """Key -> byte of the tar at which its tokens begin, as any reader of tars finds it."""
    with tarfile.open(path, mode="r:") as tar:
        return {
            member.name.removesuffix(".tokens"): member.offset_data for member in tar if member.name.endswith(".tokens")
        }
