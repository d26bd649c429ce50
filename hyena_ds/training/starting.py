"""Where a run begins: a fresh or initialised model, or a checkpoint that all ranks have checked.

choose_checkpoint --none--> the task's objective (--> initialize_from) --> engine
                  --PATH--> changes allowed? --> parameters --> engine --> moments
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import deepspeed

from hyena_ds.checkpoints.choice import choose_checkpoint
from hyena_ds.checkpoints.directory import set_aside_after
from hyena_ds.checkpoints.engine_state import load_moments
from hyena_ds.checkpoints.manifest import Checkpoint, RunState
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.checkpoints.tiers import choose_from_tiers, set_aside_in_tiers
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.parallel.agreement import agreed, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.tasks.task import Task
from hyena_ds.training.engine import build_engine


@dataclass(frozen=True)
class Start:
    """An engine, and where its run stands."""

    engine: deepspeed.DeepSpeedEngine
    state: RunState
    run_name: str
    """The run's random name."""
    news: tuple[str, ...]
    """What the log should say of it."""
    in_tiers: tuple[int, ...] = ()
    """The step of the newest checkpoint of every tier, 0 where it has none."""


def start(config: RunConfig, task: Task, compute: Compute, directory: RunDirectory, shards: ShardList) -> Start:
    """As the config's `resume` says, on the data of `shards`. Collective; raises UserError on all ranks."""
    checkpoint, damaged, in_tiers = choose_from_tiers(config, directory.checkpoints, compute, directory.metrics)
    changed = agreed(lambda: directory.changes(config, checkpoint))
    data = agreed(lambda: directory.compare_data(checkpoint, shards))
    news = [*damaged, *(f"changed since: {change}" for change in changed), *data]
    if checkpoint is None:
        return Start(_fresh(config, task, compute), RunState(0, 0, 0), secrets.token_hex(8), tuple(news), in_tiers)
    engine, record = resumed(config, task, compute, checkpoint), checkpoint.record
    news.append(f"resuming after step {record.state.step} from {checkpoint}")
    aside = agreed(lambda: set_aside_after(directory.checkpoints, record.state.step) if compute.rank == 0 else [])
    news += [f"of a later step, set aside; remove it when you no longer want it: {path}" for path in aside]
    if any(step > record.state.step for step in in_tiers):
        news += from_rank_zero(lambda: set_aside_in_tiers(config, record.state.step))
    return Start(engine, record.state, record.run, tuple(news), in_tiers)


def roll_back(
    config: RunConfig, task: Task, compute: Compute, directory: RunDirectory
) -> tuple[deepspeed.DeepSpeedEngine, RunState]:
    """The engine of the run's own newest whole checkpoint, or of its beginning where there is none. Collective."""
    checkpoint, _ = choose_checkpoint(directory.checkpoints, "latest", compute)
    if checkpoint is None:
        return _fresh(config, task, compute), RunState(0, 0, 0)
    return resumed(config, task, compute, checkpoint), checkpoint.record.state


def _fresh(config: RunConfig, task: Task, compute: Compute) -> deepspeed.DeepSpeedEngine:
    objective = task.objective()
    if config.initialize_from is not None:
        agreed(lambda: task.initialize(objective))
    return build_engine(config, objective.to(compute.device), compute.ranks)


def resumed(config: RunConfig, task: Task, compute: Compute, checkpoint: Checkpoint) -> deepspeed.DeepSpeedEngine:
    """An engine with a checkpoint's parameters and moments. Collective; raises UserError on all ranks."""
    objective = task.objective()
    shapes = {name: parameter.shape for name, parameter in objective.named_parameters()}
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    saved = agreed(lambda: SavedState(checkpoint, shapes, frozen))
    objective.load_state_dict(agreed(saved.parameters))
    engine = build_engine(config, objective.to(compute.device), compute.ranks)
    load_moments(engine, saved.tensor, checkpoint.record.updates)
    return engine
