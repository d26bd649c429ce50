"""Functions that run in every rank of a pool: the first argument is the rank's Compute."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena_ds.checkpoints.choice import choose_checkpoint
from hyena_ds.checkpoints.engine_state import MOMENTS, PARAMETER, fragments, load_moments, updates_done
from hyena_ds.checkpoints.manifest import RunState, read_checkpoint
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import CheckpointConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.nodes import Nodes
from hyena_ds.training.step import train_step
from tests.distributed.cases import _call, _engine
from tests.distributed.work import CONTEXT, SEED, Grid, lively_model, make_batch, run_config

RUN = "0123456789abcdef"


def tiny(ranks: int, zero_stage: int, **checkpoint: Any) -> RunConfig:
    """A run on `ranks` rows; two parameter groups, and parameters that no number of ranks divides evenly."""
    return run_config(Grid(ranks, 1), zero_stage=zero_stage, checkpoint=CheckpointConfig(**checkpoint))


def _train(compute: Compute, config: RunConfig, engine: Any, writer: CheckpointWriter, step: int) -> None:
    grid = Grid(compute.ranks, 1)
    part = make_batch(100 + step, 8, 2).on_rank(step, grid, compute.rank)
    result = train_step(engine, part, _call(compute, grid, CONTEXT, config), compute, SEED, 1e-3, writer.votes)
    writer.after_step(result.votes)


def save(compute: Compute, directory: Path, zero_stage: int, steps: list[int], **checkpoint: Any) -> list[list[str]]:
    """Train to the last of `steps`, saving after those; under way are the names in `directory` after every step."""
    config = tiny(compute.ranks, zero_stage, **checkpoint)
    writer = CheckpointWriter(directory, config, compute, RUN)
    there = []
    with _engine(compute, config, lively_model(config.model), None) as engine:
        for step in range(max(steps) + 1):
            if step:
                _train(compute, config, engine, writer, step)
            if step in steps:
                writer.save(engine, RunState(step, 0, 100 * step))
            there.append(sorted(path.name for path in directory.glob("*")) if directory.exists() else [])
        writer.finish()
    return there


def steps_until_complete(compute: Compute, directory: Path) -> int:
    """Save after step 1, and train on until the checkpoint is there; no other save, and nobody waits for it."""
    config = tiny(compute.ranks, 2)
    writer = CheckpointWriter(directory, config, compute, RUN)
    with _engine(compute, config, lively_model(config.model), None) as engine:
        _train(compute, config, engine, writer, 1)
        writer.save(engine, RunState(1, 0, 256))
        step = 1
        while writer.under_way and step < 500:
            step += 1
            _train(compute, config, engine, writer, step)
    return step


def save_and_load(
    compute: Compute, directory: Path, zero_stage: int, load: Path | None, save_as: Path | None, nodes: Nodes = ()
) -> dict[str, tuple[int, Tensor]]:
    """An engine that trained two steps, or the one of checkpoint `load`; saved below `save_as`, as if the ranks were on `nodes`.

    This rank's fragments of it: {KIND/NAME: (offset, slice)}.
    """
    compute = replace(compute, known_nodes=nodes)
    config = tiny(compute.ranks, zero_stage)
    writer = CheckpointWriter(save_as or Path(), config, compute, RUN)
    model = lively_model(config.model) if load is None else build_model(config.model, 1)
    updates = 0
    if load is not None:
        checkpoint = read_checkpoint(load)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        saved = SavedState(checkpoint, shapes, compute=compute)
        model.load_state_dict(saved.parameters())
        updates = checkpoint.record.updates
    with _engine(compute, config, model, None) as engine:
        if load is not None:
            load_moments(engine, saved.chunks, updates)
        else:
            for step in range(2):
                _train(compute, config, engine, writer, step)
        if save_as is not None:
            writer.save(engine, RunState(2, 0, 512))
            writer.finish()
        assert updates_done(engine) == 2
        return {
            f"{kind}/{piece.name}": (piece.offset, piece.slices[kind].cpu().clone())
            for piece in fragments(engine)
            for kind in (PARAMETER, *MOMENTS)
        }


def save_until_full(
    compute: Compute, directory: Path, background: bool, full: int, limit: int, first: bool = True
) -> list[str]:
    """Save at step 1 (unless `first` is false), then at step 2 while rank `full` may write no more than `limit` bytes a file.

    Every rank's words.
    """
    config = tiny(compute.ranks, 1, background=background)
    writer = CheckpointWriter(directory, config, compute, RUN)
    words = []
    with _engine(compute, config, lively_model(config.model), None) as engine:
        _train(compute, config, engine, writer, 1)
        if first:
            writer.save(engine, RunState(1, 0, 256))
            writer.finish()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if compute.rank == full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            writer.save(engine, RunState(2, 0, 512))
            deadline = time.monotonic() + 60
            step = 2
            while time.monotonic() < deadline:
                _train(compute, config, engine, writer, step)
                step += 1
        except UserError as error:
            words.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.finish()  # nothing is under way any more
    return words


def choose(compute: Compute, directory: Path, resume: str) -> tuple[str, list[str]]:
    """(the name of the checkpoint that a run resumes from, or the error, what is said of damaged ones)."""
    try:
        checkpoint, damaged = choose_checkpoint(directory, resume, compute)
    except UserError as error:
        return f"refused: {error}", []
    return (checkpoint.path.name if checkpoint else "none"), damaged


def assembled(pieces: list[dict[str, tuple[int, Tensor]]]) -> dict[str, Tensor]:
    """Whole flat tensors from the fragments of all ranks, in another way than the reader's."""
    whole: dict[str, list[tuple[int, Tensor]]] = {}
    for rank in pieces:
        for key, piece in rank.items():
            whole.setdefault(key, []).append(piece)
    return {key: torch.cat([value for _, value in sorted(found, key=lambda p: p[0])]) for key, found in whole.items()}
