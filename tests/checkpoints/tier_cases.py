"""Functions that run in every rank of a pool: copies of made checkpoints go to tiers, and come back."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyena_ds.checkpoints.directory import begin, checkpoints_in, clear, complete, hide
from hyena_ds.checkpoints.manifest import RUN_STATE, WEIGHTS, Record, RunState, write_file, write_manifest
from hyena_ds.checkpoints.tiers import choose_from_tiers
from hyena_ds.checkpoints.upload import Uploads
from hyena_ds.config.checkpoint import CheckpointConfig, TierConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_rank_zero
from hyena_ds.parallel.devices import Compute
from tests.distributed.work import Grid, run_config

BYTES = 300_000


def made(directory: Path, step: int, keep_last: int = 2, run: str = "one", seed: int = 0) -> None:
    """A checkpoint of a run, with files of random bytes."""
    partial = begin(directory, step)
    record = Record(run, RunState(step, 0, 0), step, 1, {}, 0, [], {})
    random_bytes = random.Random(step + 1000 * seed).randbytes
    contents = {RUN_STATE: record.text().encode(), WEIGHTS: random_bytes(BYTES)}
    contents |= {f"state-{number}.safetensors": random_bytes(BYTES) for number in range(3)}
    files = {name: write_file(partial / name, [content]) for name, content in contents.items()}
    write_manifest(partial, run, step, files)
    complete(partial, step)
    clear(hide(checkpoints_in(directory)[keep_last:])[1].values())


def config_of(tiers: list[dict[str, Any]], ranks: int = 2, **changes: Any) -> RunConfig:
    """A run of 2 ranks with these tiers, that saves every step."""
    checkpoint = CheckpointConfig(every_steps=1, tiers=tuple(TierConfig(**tier) for tier in tiers))
    return run_config(Grid(ranks, 1), checkpoint=checkpoint, **changes)


def copied(
    compute: Compute,
    run: Path,
    tiers: list[dict[str, Any]],
    steps: list[int],
    environment: dict[str, str],
    nodes: int = 2,
    selected: int | None = None,
    waits: bool = True,
    **checkpoint: Any,
) -> list[str] | str:
    """Save `steps` below `run`, each after the copies of the one before where it `waits`; what is said, or the error."""
    os.environ.update(environment)
    compute = replace(compute, known_nodes=((0,), (1,)) if nodes == 2 else ((0, 1),))
    directory, said = run / "checkpoints", []
    uploads = Uploads(config_of(tiers), directory, compute, said.append, run / "metrics.jsonl")
    try:
        for step in steps:
            uploads.check()
            from_rank_zero(lambda: made(directory, step, **checkpoint))  # noqa: B023
            uploads.completed(step, selected)
            while waits and any(uploads._busy()):
                pass
        uploads.leave()
    except UserError as error:
        return str(error)
    return said


def chosen(
    compute: Compute, run: Path, tiers: list[dict[str, Any]], environment: dict[str, str], **changes: Any
) -> tuple[str, list[str], tuple[int, ...]]:
    """(the checkpoint that a run goes on from, or the error; what is said; the newest steps of the tiers)."""
    os.environ.update(environment)
    run.mkdir(exist_ok=True)
    config = replace(config_of(tiers), **changes)
    try:
        checkpoint, news, newest = choose_from_tiers(config, run / "checkpoints", compute, run / "metrics.jsonl")
    except UserError as error:
        return str(error), [], ()
    return (checkpoint.path.name if checkpoint else "none"), news, newest


def steps_while_the_store_hangs(
    compute: Compute, run: Path, place: str, environment: dict[str, str], train: int
) -> tuple[list[int], bool]:
    """(the steps that were saved, whether the copy of the first was still under way after them)."""
    os.environ.update(environment)
    directory = run / "checkpoints"
    tiers = [{"place": place, "every_steps": 1, "patience": 60.0}]
    uploads = Uploads(config_of(tiers), directory, compute, print, run / "metrics.jsonl")
    done = []
    for step in range(1, train + 1):
        from_rank_zero(lambda: made(directory, step))  # noqa: B023
        uploads.completed(step)
        done.append(step)
    return done, any(uploads._busy())
