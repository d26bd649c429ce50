"""`hyena-ds bench shards`: what an index of thousands of shards costs a rank, without one of the shards.

    made-up genomes --text of their indices--> read, sent, opened, first step, later steps, cache and prefetch: a row a context

Nothing is read but the index: what a warm cache would give at once is left out. Seconds are those of this process's CPU.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import machine
from hyena_ds.bench.report import Column, Row, print_table
from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, SourceConfig
from hyena_ds.data.chunks import Chunk, Chunks
from hyena_ds.data.identity import ShardList
from hyena_ds.data.shards import Shard, ShardIndex, parse_index
from hyena_ds.data.stream import Sources, StageStream, validation_samples
from hyena_ds.errors import UserError
from hyena_ds.text import number

_CHUNK = 1 << 20
_LATER_STEPS = 20
T = TypeVar("T")


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each context length and number of shards that are shuffled together."""
    for name in ("genomes", "shards", "chunks", "ranks"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: found {getattr(options, name)}, wanted at least 1")
    received, common = _index(options)
    rows = []
    for length in options.context_length:
        for together in options.shuffle_shards:
            say(f"context {length:,}, {together} shards of a genome shuffled together")
            side = {"side": f"{length:,}, {together} together", "context_length": length, "shuffle_shards": together}
            rows.append(side | common | cost(received, length, together, options.ranks))
    print_table(
        _COLUMNS,
        rows,
        f"index: {common['index_mib']:.1f} MiB a rank; on a node's first rank read in {number(common['read_seconds'])} s, sent and received in "
        f"{number(common['send_seconds'])} s; on rank 0 listed with digests in {number(common['list_seconds'])} s",
        f"{options.genomes} genomes, {common['shards']:,} shards, {options.ranks} ranks, a sequence for each; CPU seconds",
    )
    return rows, machine()


def _index(options: argparse.Namespace) -> tuple[list[ShardIndex], Row]:
    """The indices as a rank has them, and what they cost on their way to it."""
    say(f"making the indices of {options.genomes} genomes of {options.shards} shards")
    texts = [genome(f"genome{n}", options.shards, options.chunks).to_json().encode() for n in range(options.genomes)]
    indices, read = _timed(lambda: [parse_index(text, "index") for text in texts])
    sent, pickled = _timed(lambda: pickle.dumps(indices))
    received, unpickled = _timed(lambda: pickle.loads(sent))
    listed, listing = _timed(lambda: ShardList.of(indices).digest)
    return received, {
        "status": "measured",
        "shards": options.genomes * options.shards,
        "index_mib": sum(index.chunks.nbytes for index in received) / 2**20,
        "sent_mib": len(sent) / 2**20,
        "read_seconds": read,
        "send_seconds": pickled + unpickled,
        "list_seconds": listing,
        "digest": listed,
    }


def cost(indices: list[ShardIndex], length: int, together: int, ranks: int) -> Row:
    """What a stage of one sequence a rank takes of each rank."""
    sources = tuple(SourceConfig(f"genome{number}", 1.0) for number in range(len(indices)))
    config = DataConfig(sources, shuffle_shards=together)
    stage = StageConfig(context_length=length, steps=1000, micro_batch_size=1, global_batch=ranks)
    plan = StagePlan(0, stage, ranks, 1, 0, 1, "lean")
    opened, open_seconds = _timed(lambda: Sources(config, "train", indices))
    stream, windows_seconds = _timed(lambda: StageStream(opened, 1, plan))
    _, held_out_seconds = _timed(lambda: validation_samples(Sources(config, "valid", indices), length, 64))
    samples, first_seconds = _timed(lambda: stream.samples(0))
    scored, scored_seconds = _timed(lambda: opened.scored(samples, length))
    steps, later = _timed(lambda: [stream.samples(step) for step in range(1, 1 + _LATER_STEPS)])
    groups, group_seconds = _timed(lambda: stream.groups(0))
    sizes = [{shard.file: shard.bytes for shard in index.shards} for index in indices]
    in_use = sum(size[file] for size, (now, _) in zip(sizes, groups, strict=True) for file in now)
    following = sum(size[file] for size, (_, after) in zip(sizes, groups, strict=True) for file in after)
    windows = sum(order.windows.count for order in stream.orders)
    epoch = sum(sum(size.values()) for size in sizes)
    return {
        "windows": windows,
        "steps_an_epoch": windows // ranks,
        "open_seconds": open_seconds + windows_seconds,
        "held_out_seconds": held_out_seconds,
        "first_step_seconds": first_seconds + scored_seconds,
        "later_step_seconds": later / len(steps),
        "plan_seconds": group_seconds,
        "order_mib": sum(order.nbytes(0) for order in stream.orders) / 2**20,
        "cache_gib": in_use / 2**30,
        "cache_with_next_gib": (in_use + following) / 2**30,
        "epoch_gib_a_node": epoch / 2**30,
        "gib_a_step_a_node": epoch / 2**30 / max(1, windows // ranks),
        "scored": scored,
    }


def genome(assembly: str, shards: int, chunks: int) -> ShardIndex:
    """An index of made-up shards of `chunks` chunks of 2^20 bases; the last shard is held out, each 20th chunk has two runs of N."""
    made = []
    for row in range(shards * chunks):
        shard, within = divmod(row, chunks)
        made.append(
            Chunk(
                key=f"{assembly}-chr{shard % 24 + 1}-{row * _CHUNK:012d}",
                shard=shard,
                offset=512 + within * (_CHUNK + 2048),
                assembly=assembly,
                chromosome=f"chr{shard % 24 + 1}",
                start=row * _CHUNK,
                end=(row + 1) * _CHUNK,
                split="valid" if shard == shards - 1 else "train",
                soft_masked=0.5,
                n_fraction=0.06 if row % 20 == 0 else 0.0,
                n_runs=((100, 50_000), (70_000, 10_000)) if row % 20 == 0 else (),
                unknown_runs=(),
            )
        )
    bytes_ = 512 + chunks * (_CHUNK + 2048)
    split = ["train"] * (shards - 1) + ["valid"]
    listed = tuple(
        Shard(f"{name}-{number:06d}.tar", name, bytes_, f"{number:064x}") for number, name in enumerate(split)
    )
    return replace(ShardIndex(assembly, _CHUNK, listed, Chunks()), chunks=Chunks(made))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


_COLUMNS: list[Column] = [
    ("context", lambda row: row["side"]),
    ("windows", lambda row: f"{row['windows']:,}"),
    ("open, s", lambda row: number(row["open_seconds"])),
    ("held out, s", lambda row: number(row["held_out_seconds"])),
    ("first step, s", lambda row: number(row["first_step_seconds"])),
    ("a later step, s", lambda row: number(row["later_step_seconds"])),
    ("order, MiB", lambda row: f"{row['order_mib']:.1f}"),
    ("what to fetch, s", lambda row: number(row["plan_seconds"])),
    ("cache, GiB", lambda row: f"{row['cache_gib']:.1f}"),
    ("with the next group", lambda row: f"{row['cache_with_next_gib']:.1f}"),
    ("fetched a node and step, GiB", lambda row: number(row["gib_a_step_a_node"])),
]
