"""Writes shards: the chunks of a plan, as WebDataset tars, each with a record of what went into it.

    planned shards --one process each, in any order--> (shard, record) as they finish
    PlannedShard + Genome --letters to tokens--> WORK/NAME.tar, then WORK/NAME.json (ShardRecord)

The record is written last: where it exists, the tar is complete. The bytes are those of `webdataset.TarWriter` with a
fixed owner and time (a test compares them); the package itself is not used here, since importing it imports torch.
Workers are spawned, not forked: the parent may hold threads. A worker ends by itself when its parent was killed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.plan import PlannedChunk, PlannedShard
from hyena_ds.data.chunks import Chunk, chunk_from
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, to_disk, write_whole
from hyena_ds.genome import letters, tokenizer
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import Bytes

OWNER = "hyena-ds"
MODE = 0o644


class Interrupted(UserError):
    """Ended from outside, not by wrong input: what is finished is kept, and the same command goes on from it."""


@dataclass(frozen=True)
class Job:
    """What every shard of one prep has in common; travels to the workers."""

    fasta: Path
    index: Path
    assembly: str
    table: Bytes
    """The token of each letter."""
    directory: Path
    """Where tars and records go."""


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
        """The record as one line."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """The record of such a line. Raises ValueError, KeyError or TypeError."""
        raw: dict[str, Any] = json.loads(text)
        raw["chunks"] = tuple(chunk_from(chunk) for chunk in raw["chunks"])
        raw["dropped"] = tuple((name, start, end) for name, start, end in raw["dropped"])
        return cls(**raw)


def write_shards(job: Job, shards: Sequence[PlannedShard], workers: int) -> Iterator[tuple[PlannedShard, ShardRecord]]:
    """Write the shards with `workers` processes; yields each as it is finished.

    Raises Interrupted when a worker ended before its time. Shards that were finished stay.
    """
    if not shards:
        return
    if workers == 1 or len(shards) == 1:
        yield from ((shard, write_shard(job, shard)) for shard in shards)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        waiting = {pool.submit(write_shard, job, shard): shard for shard in shards}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise Interrupted(
            f"{job.directory}: a worker process ended before its time (killed, or out of memory?); "
            "run the same command again to resume, with fewer 'workers' if memory was short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def write_shard(job: Job, planned: PlannedShard) -> ShardRecord:
    """Write the planned shard into the job's directory, then its record; replaces what an interrupted run left."""
    tar_path = job.directory / f"{planned.name}.tar"
    counts = np.zeros(256, dtype=np.int64)
    chunks: list[Chunk] = []
    dropped: list[tuple[str, int, int]] = []
    with closing(Genome(job.fasta, job.index)) as genome, aside(tar_path) as unfinished, unfinished.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for item in planned.chunks:
                text = genome.read(item.chromosome, item.start, item.end)
                made = make_chunk(item, job.assembly, text, job.table)
                if made is None:
                    dropped.append((item.chromosome, item.start, item.end))
                    continue
                tokens, chunk = made
                counts += letters.count_letters(text)
                _add(tar, f"{chunk.key}.json", json.dumps(chunk.metadata(), sort_keys=True).encode())
                offset = _add(tar, f"{chunk.key}.tokens", tokens.tobytes())
                chunks.append(dataclasses.replace(chunk, offset=offset))
        to_disk(file)
    if not chunks:
        tar_path.unlink()
    record = ShardRecord(
        split=planned.split,
        bytes=tar_path.stat().st_size if chunks else 0,
        sha256=sha256_of(tar_path) if chunks else "",
        chunks=tuple(chunks),
        dropped=tuple(dropped),
        letters={str(byte): int(counts[byte]) for byte in np.flatnonzero(counts)},
    )
    write_whole(job.directory / f"{planned.name}.json", record.to_json())
    return record


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


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member; the byte of the tar at which its data begin: after one block of header, as long as names are short."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, MODE
    member.uname = member.gname = OWNER
    begin = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return begin
