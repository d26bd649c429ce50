"""The processes that write shards.

    planned shards --one process each, in any order--> (shard, record) as they finish

Workers are spawned, not forked: the parent may hold threads. A worker ends by itself when its parent was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from data_prep.plan import PlannedShard
from data_prep.writer import ShardRecord, write_shard
from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import LetterTable


class Interrupted(UserError):
    """Ended from outside, not by wrong input: what is finished is kept, and the same command goes on from it."""


@dataclass(frozen=True)
class Job:
    """What every shard of one prep has in common; travels to the workers."""

    fasta: Path
    index: Path
    assembly: str
    table: LetterTable
    directory: Path


def write_shards(job: Job, shards: Sequence[PlannedShard], workers: int) -> Iterator[tuple[PlannedShard, ShardRecord]]:
    """Write the shards with `workers` processes; yields each as it is finished.

    Raises Interrupted when a worker ended before its time. Shards that were finished stay.
    """
    if not shards:
        return
    if workers == 1 or len(shards) == 1:
        genome = Genome(job.fasta, job.index)
        for shard in shards:
            yield shard, write_shard(genome, shard, job.assembly, job.table, job.directory)
        genome.close()
        return
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        waiting = {pool.submit(_write_one, job, shard): shard for shard in shards}
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


def _write_one(job: Job, shard: PlannedShard) -> ShardRecord:
    genome = Genome(job.fasta, job.index)
    try:
        return write_shard(genome, shard, job.assembly, job.table, job.directory)
    finally:
        genome.close()
