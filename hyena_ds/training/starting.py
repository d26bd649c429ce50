"""Where a run begins: a fresh or initialised model, or a checkpoint that all ranks have checked.

choose_checkpoint --none--> build_model (--> initialize_from) --> engine
                  --PATH--> changes allowed? --> parameters --> engine --> moments
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import deepspeed

from hyena_ds.checkpoints.choice import choose_checkpoint
from hyena_ds.checkpoints.directory import set_aside_after
from hyena_ds.checkpoints.engine_state import load_moments
from hyena_ds.checkpoints.manifest import Record, RunState, read_record
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.checkpoints.weights import check_same_shape, find_weights
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.parallel.agreement import agreed
from hyena_ds.parallel.devices import Compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.training.engine import build_engine
from hyena_ds.weights.published import read_weights


@dataclass(frozen=True)
class Start:
    """An engine, and where its run stands."""

    engine: deepspeed.DeepSpeedEngine
    state: RunState
    run: str
    """The run's random name."""
    news: tuple[str, ...]
    """What the log should say of it."""


def start(config: RunConfig, compute: Compute, directory: RunDirectory, shards: ShardList) -> Start:
    """As the config's `resume` says, on the data of `shards`. Collective; raises UserError on all ranks."""
    checkpoint, damaged = choose_checkpoint(directory.checkpoints, config.resume, compute)
    changed = agreed(lambda: directory.changes(config, checkpoint))
    data = agreed(lambda: directory.compare_data(checkpoint, shards))
    news = [*damaged, *(f"changed since: {change}" for change in changed), *data]
    if checkpoint is None:
        return Start(_fresh(config, compute), RunState(0, 0, 0), secrets.token_hex(8), tuple(news))
    engine, record = _resumed(config, compute, checkpoint)
    news.append(f"resuming after step {record.state.step} from {checkpoint}")
    aside = agreed(lambda: set_aside_after(directory.checkpoints, record.state.step) if compute.rank == 0 else [])
    news += [f"of a later step, set aside; remove it when you no longer want it: {path}" for path in aside]
    return Start(engine, record.state, record.run, tuple(news))


def roll_back(
    config: RunConfig, compute: Compute, directory: RunDirectory
) -> tuple[deepspeed.DeepSpeedEngine, RunState]:
    """The engine of the run's own newest whole checkpoint, or of its beginning where there is none. Collective."""
    checkpoint, _ = choose_checkpoint(directory.checkpoints, "latest", compute)
    if checkpoint is None:
        return _fresh(config, compute), RunState(0, 0, 0)
    engine, record = _resumed(config, compute, checkpoint)
    return engine, record.state


def _fresh(config: RunConfig, compute: Compute) -> deepspeed.DeepSpeedEngine:
    model = build_model(config.model, config.seed)
    if config.initialize_from is not None:
        agreed(lambda: _initialize(model, config))
    return _engine(config, compute, model)


def _resumed(config: RunConfig, compute: Compute, checkpoint: Path) -> tuple[deepspeed.DeepSpeedEngine, Record]:
    model = build_model(config.model, config.seed)
    record = agreed(lambda: read_record(checkpoint))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    saved = agreed(lambda: SavedState(checkpoint, shapes))
    model.load_state_dict(agreed(saved.parameters))
    engine = _engine(config, compute, model)
    load_moments(engine, saved.tensor, record.updates)
    return engine, record


def _engine(config: RunConfig, compute: Compute, model: HyenaDNA) -> deepspeed.DeepSpeedEngine:
    return build_engine(config, model.to(compute.device), compute.ranks)


def _initialize(model: HyenaDNA, config: RunConfig) -> None:
    path = find_weights(config.initialize_from or "")
    found, parameters = read_weights(path, config.model.filter_shift)
    check_same_shape(path, found, config.model)
    model.load_state_dict(parameters)
