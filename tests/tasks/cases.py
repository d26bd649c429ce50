"""Functions that run in every rank of a pool: the first argument is the rank's Compute."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hyena_ds.checkpoints.engine_state import load_moments, updates_done
from hyena_ds.checkpoints.manifest import RunState, read_checkpoint
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import CheckpointConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice, StepBatch
from hyena_ds.model.pooling import Pooling, pool
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.step import train_step
from tests.distributed.cases import _call, _engine, _layout, _parameters, _reduced_gradients, _replaced
from tests.distributed.work import CONTEXT, SEED, Grid, Trained, lively_model, run_config
from tests.tasks.labelled import Labelled, read

SEQUENCES, ACCUMULATION = 8, 2


def step_batch(step: int, grid: Grid, rank: int) -> StepBatch:
    """Eight sequences in two micro steps; two of the second micro step have no label."""
    part = Slice(grid.topology.row(rank), grid.topology.index(rank) * CONTEXT // grid.sp, CONTEXT // grid.sp)
    size = SEQUENCES // (ACCUMULATION * grid.dp)
    micro_batches = []
    for micro_step in range(ACCUMULATION):
        first = (micro_step * grid.dp + part.row) * size
        numbers = list(range(first, first + size))
        samples = [None if number in (5, 6) else 100 * step + number for number in numbers]
        micro_batches.append(read(samples, numbers, CONTEXT, part))
    return StepBatch(step, micro_batches, SEQUENCES - 2)


def train(
    compute: Compute, grid: Grid, config: RunConfig, pooling: Pooling, frozen: tuple[str, ...], steps: int, rate: float
) -> Trained:
    """Train the labelled objective through the trainer's engine and step, with SGD."""
    objective = Labelled(lively_model(config.model), pooling, frozen)
    trained = Trained()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=rate)
    with _engine(compute, config, objective, optimizer) as engine:
        update = engine.step

        def capture_then_update() -> None:
            if not trained.first_gradients and engine.is_gradient_accumulation_boundary():
                trained.first_gradients = _reduced_gradients(engine)
            update()

        with _replaced(engine, "step", capture_then_update):
            for step in range(steps):
                call = _call(compute, grid, CONTEXT, config)
                result = train_step(engine, step_batch(step, grid, compute.rank), call, compute, SEED, rate)
                trained.losses.append(result.loss)
                trained.norms.append(result.means[0])
        trained.parameters = _parameters(engine)
    return trained


def pooled(
    compute: Compute, grid: Grid, hidden_BLD: Tensor, lengths_B: Tensor | None, pooling: Pooling
) -> list[Tensor]:
    """The pooled states, and this rank's gradient of their weighted sum, which the group's first rank takes."""
    layout = _layout(compute, grid, hidden_BLD.shape[1])
    here = slice(layout.offset, layout.offset + layout.local_length)
    hidden_BlD = hidden_BLD[:, here].clone().requires_grad_()
    state_BD = pool(hidden_BlD, pooling, layout, lengths_B)
    weights_BD = torch.arange(1.0, 1.0 + state_BD.numel()).view_as(state_BD)
    (float(layout.exchange.index == 0) * (state_BD * weights_BD).sum()).backward()
    assert hidden_BlD.grad is not None
    return [state_BD.detach(), hidden_BlD.grad]


def saved(compute: Compute, directory: Path, zero_stage: int, load: Path | None) -> list[int]:
    """Save an engine after two AdamW steps of its own, or as it comes out of checkpoint `load`: updates, and the step saved."""
    grid = Grid(compute.ranks, 1)
    config = run_config(grid, zero_stage=zero_stage, checkpoint=CheckpointConfig())
    objective = Labelled(lively_model(config.model), "last", ("backbone.embedding", "backbone.blocks.1.mlp"))
    shapes = {name: parameter.shape for name, parameter in objective.named_parameters()}
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    if load is not None:
        for parameter in objective.parameters():
            parameter.data.zero_()
        checkpoint = read_checkpoint(load)
        state = SavedState(checkpoint, shapes, frozen, compute)
        objective.load_state_dict(state.parameters())
    writer = CheckpointWriter(directory, config, compute, "0" * 16, exported=_exported)
    with _engine(compute, config, objective, None) as engine:
        if load is not None:
            load_moments(engine, state.chunks, checkpoint.record.updates)
        else:
            for step in range(2):
                call = _call(compute, grid, CONTEXT, config)
                train_step(engine, step_batch(step, grid, compute.rank), call, compute, SEED, 1e-2)
        writer.save(engine, RunState(2, 0, 512))
        writer.finish()
        return [updates_done(engine), 2]


def _exported(parameters: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    return {name: name for name in parameters}, {}


def whole_state(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's state files, its pieces put together."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in checkpoint.glob("state-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, _, offset = key.rpartition("@")
                pieces.setdefault(name, []).append((int(offset), file.get_tensor(key)))
    return {
        name: torch.cat([piece for _, piece in sorted(found, key=lambda p: p[0])]) for name, found in pieces.items()
    }
