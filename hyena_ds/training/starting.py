"""Where a run begins: a fresh or initialised model, or a checkpoint that all ranks have checked.

choose_checkpoint --none--> the task's objective (--> initialize_from) --> engine
                  --PATH--> changes allowed? --> parameters --> engine --> moments
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.checkpoints.choice import choose_checkpoint
from hyena_ds.checkpoints.directory import set_aside_after
from hyena_ds.checkpoints.engine_state import PARAMETER, load_moments
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import Checkpoint, RunState
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.checkpoints.tiers import choose_from_tiers, newest_of_run, set_aside_in_tiers
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_rank_zero
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


def early_check(config: RunConfig, compute: Compute, directory: RunDirectory) -> Checkpoint | None:
    """The checkpoint that the run will go on from if its bytes are right, before anything slow is begun. Collective.

    Raises UserError on all ranks where the directory holds another run, or the config does not let it continue.
    """
    goes_on = from_rank_zero(lambda: directory.check_place(config))
    if not goes_on and config.resume in ("latest", "never"):
        return None
    try:
        checkpoint, _ = choose_checkpoint(directory.checkpoints, config.resume, compute, sums=False)
    except UserError:
        if not config.checkpoint.tiers or config.resume != "latest":
            raise
        return None  # a tier may have what the directory has not
    from_rank_zero(lambda: directory.changes(config, checkpoint))
    return checkpoint


def start(config: RunConfig, task: Task, compute: Compute, directory: RunDirectory, shards: ShardList) -> Start:
    """As the config's `resume` says, on the data of `shards`. Collective; raises UserError on all ranks."""
    checkpoint, damaged, in_tiers = choose_from_tiers(config, directory.checkpoints, compute, directory.metrics)
    changed = from_rank_zero(lambda: directory.changes(config, checkpoint))
    data = from_rank_zero(lambda: directory.compare_data(checkpoint, shards))
    news = [*damaged, *(f"changed since: {change}" for change in changed), *data]
    local = LocalTier.of(config, directory.checkpoints, compute)
    if checkpoint is None:
        news += [] if local is None else local.remove_after(0)
        return Start(_fresh(config, task, compute), RunState(0, 0, 0), secrets.token_hex(8), tuple(news), in_tiers)
    engine, record = resumed(config, task, compute, checkpoint), checkpoint.record
    news.append(f"resuming after step {record.state.step} from {checkpoint}")
    aside = from_rank_zero(lambda: set_aside_after(directory.checkpoints, record.state.step))
    news += [f"of a later step, set aside; remove it when you no longer want it: {path}" for path in aside]
    news += [] if local is None else local.remove_after(record.state.step)
    if any(step > record.state.step for step in in_tiers):
        news += from_rank_zero(lambda: set_aside_in_tiers(config, record.state.step))
    return Start(engine, record.state, record.run, tuple(news), in_tiers)


def roll_back(
    config: RunConfig, task: Task, compute: Compute, directory: RunDirectory
) -> tuple[deepspeed.DeepSpeedEngine, RunState]:
    """The engine of the run's own newest whole checkpoint, or of its beginning where there is none. Collective."""
    checkpoint = newest_of_run(config, directory.checkpoints, compute)
    if checkpoint is None:
        return _fresh(config, task, compute), RunState(0, 0, 0)
    return resumed(config, task, compute, checkpoint), checkpoint.record.state


def _fresh(config: RunConfig, task: Task, compute: Compute) -> deepspeed.DeepSpeedEngine:
    objective = task.objective()
    objective.to(compute.device)
    if config.initialize_from is not None:
        from_rank_zero(lambda: task.initialize(objective))
        for parameter in objective.parameters():
            dist.broadcast(parameter.data, src=0)
    return build_engine(config, objective, compute.ranks)


def resumed(config: RunConfig, task: Task, compute: Compute, checkpoint: Checkpoint) -> deepspeed.DeepSpeedEngine:
    """An engine with a checkpoint's parameters and moments. Collective; raises UserError on all ranks."""
    objective = task.objective()
    shapes = {name: parameter.shape for name, parameter in objective.named_parameters()}
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    saved = SavedState(checkpoint, shapes, frozen, compute)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter.copy_(saved.tensor(PARAMETER, name))
    engine = build_engine(config, objective.to(compute.device), compute.ranks)
    load_moments(engine, saved.chunks, checkpoint.record.updates)
    return engine
