"""Functions that run in every rank of a pool, of which each is a host with a disk of its own, `DISK-RANK`."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import RUN_STATE, WEIGHTS, Checkpoint, Record, RunState, write_file
from hyena_ds.checkpoints.saved_state import SavedState, state_file
from hyena_ds.checkpoints.tiers import choose_from_tiers
from hyena_ds.checkpoints.upload import Uploads
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import CheckpointConfig, TierConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute
from tests.checkpoints.cases import _train
from tests.distributed.cases import _engine
from tests.distributed.work import Grid, lively_model, run_config

PLACE = "$DISK_OF_TEST"


def config_of(
    compute: Compute, disk: Path, tiers: list[dict[str, Any]], swapped: bool = False, **local: Any
) -> RunConfig:
    """A run that saves every step to the disk of its rank; where `swapped`, to that of the other."""
    os.environ[PLACE[1:]] = f"{disk}-{compute.ranks - 1 - compute.rank if swapped else compute.rank}"
    own = TierConfig(PLACE, every_steps=1, local=True, **local)
    return run_config(
        Grid(compute.ranks, 1),
        checkpoint=CheckpointConfig(every_steps=10, tiers=(own, *(TierConfig(**tier) for tier in tiers))),
    )


def saved(
    compute: Compute,
    run: Path,
    disk: Path,
    steps: list[int],
    name: str = "one",
    tiers: list[dict[str, Any]] | None = None,
    keep_last: int = 2,
) -> list[str]:
    """Parts of `steps` of the run called `name`, with copies in `tiers`; what is said."""
    directory, said = run / "checkpoints", list[str]()
    config = config_of(compute, disk, tiers or [], keep_last=keep_last)
    local = LocalTier.of(config, directory, compute)
    assert local is not None
    local.open()
    own = name if compute.rank == 0 else "each rank draws one"
    local.belongs_to(own, 0)
    uploads = Uploads(config, directory, compute, said.append, run / "metrics.jsonl")
    for step in steps:
        partial = local.begin(step)
        assert isinstance(partial, Path)
        contents = {state_file(compute.rank, compute.ranks): os.urandom(1000)}
        if compute.rank == 0:
            record = Record(name, RunState(step, 0, 0), step, compute.ranks, {}, 0, [], {})
            contents |= {RUN_STATE: record.text().encode(), WEIGHTS: os.urandom(1000)}
        written = {file: write_file(partial / file, [content]) for file, content in contents.items()}
        news = local.complete(partial, own, step, from_every_rank(written), None)
        assert not isinstance(news, str), news
        said += news
        uploads.completed(step, None, local.path)
        while any(uploads._busy()):
            pass
    uploads.leave()
    return said


def chosen(
    compute: Compute, run: Path, disk: Path, tiers: list[dict[str, Any]] | None = None, swapped: bool = False
) -> tuple[str, dict[str, int], list[str]]:
    """(the checkpoint that a run goes on from, or why it does not; who has its files; what is said)."""
    config = config_of(compute, disk, tiers or [], swapped)
    try:
        found, news, _ = choose_from_tiers(config, run / "checkpoints", compute, run / "metrics.jsonl")
    except UserError as error:
        return str(error), {}, []
    return (_shown(found, run), found.held, news) if found else ("none", {}, news)


def _shown(found: Checkpoint, run: Path) -> str:
    return f"{found.manifest.step} {'in the directory' if found.path.is_relative_to(run) else 'on the disks'}"


def removed_after(compute: Compute, run: Path, disk: Path, step: int) -> list[str]:
    """What is said of parts after `step`, which go."""
    local = LocalTier.of(config_of(compute, disk, []), run / "checkpoints", compute)
    assert local is not None
    return local.remove_after(step)


def opened(compute: Compute, run: Path, disk: Path, same: bool = False) -> str:
    """What stands in the way of the disks at a start; with `same` all ranks have that of rank 0."""
    config = config_of(replace(compute, rank=0) if same else compute, disk, [])
    try:
        choose_from_tiers(config, run / "checkpoints", compute, run / "metrics.jsonl")
    except UserError as error:
        return str(error)
    return ""


def not_begun(compute: Compute, run: Path, disk: Path, required: bool) -> str:
    """What a save says, or raises, where a host's disk takes nothing."""
    said: list[str] = []
    config = config_of(compute, disk, [], required=required)
    local = LocalTier.of(config, run / "checkpoints", compute)
    writer = CheckpointWriter(run / "checkpoints", config, compute, "one", say=said.append, local=local)
    try:
        writer.save(None, RunState(1, 0, 0), local=True)  # type: ignore[arg-type]
    except UserError as error:
        return f"error: {error}"
    assert not writer.under_way
    return "".join(said)


def full_then_whole(
    compute: Compute, run: Path, disk: Path, full: int, limit: int
) -> tuple[list[str], list[str], bool]:
    """Save steps 1 and 2 in the background, at step 1 with a disk of rank `full` that takes files of `limit` bytes.

    What is said, which steps rank's disk has, and whether what comes back from the disks of the second is what was saved.
    """
    config = replace(config_of(compute, disk, []), zero_stage=1)
    said: list[str] = []
    local = LocalTier.of(config, run / "checkpoints", compute)
    assert local is not None
    local.belongs_to("one", 0)
    writer = CheckpointWriter(run / "checkpoints", config, compute, "one", say=said.append, local=local)
    with _engine(compute, config, lively_model(config.model), None) as engine:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        for step in (1, 2):
            _train(compute, config, engine, writer, step)
            if step == 1 and compute.rank == full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                writer.save(engine, RunState(step, 0, 0), local=True)
                writer.finish()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        wanted = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
    there = sorted(path.name for path in local.path.iterdir())
    found, _ = local.choose(0)
    assert found is not None and found.held
    saved = SavedState(found, {name: value.shape for name, value in wanted.items()}, compute=compute).parameters()
    return said, there, all(torch.equal(saved[name], wanted[name]) for name in wanted)
