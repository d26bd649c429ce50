"""Functions that run in every rank of a pool: what an engine really holds of a model's state."""

from __future__ import annotations

import ctypes
import gc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import CheckpointConfig
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.step import train_step
from tests.distributed.cases import _call, _engine
from tests.distributed.work import SEED, Grid, lively_model, make_batch, run_config
from tests.memory import grown

GRID = Grid(2, 1)


def _held() -> dict[int, int]:
    """Bytes of every storage that a Python object holds, by its address."""
    found: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in gc.get_objects():
            if type(each) in (torch.Tensor, torch.nn.Parameter) and each.device.type == "cpu":
                for tensor in (each, each.grad):
                    if tensor is not None:
                        storage = tensor.untyped_storage()
                        found[storage.data_ptr()] = storage.nbytes()
    return found


def held_after_steps(compute: Compute, stage: int, offload: dict[str, Any]) -> int:
    """Bytes that two steps of two micro steps each leave, of a model of width 256."""
    config = run_config(GRID, zero_stage=stage, width=256, layers=3, gradient_clipping=1.0, **offload)
    gc.collect()
    before = _held()
    with _engine(compute, config, lively_model(config.model), None) as engine:
        for step in range(2):
            batch = make_batch(10 + step, 8, 2).on_rank(step, GRID, compute.rank)
            train_step(engine, batch, _call(compute, GRID, 32, config), compute, SEED, 1e-3)
        gc.collect()
        return sum(size for address, size in _held().items() if before.get(address) != size)


def _give_back() -> None:
    """Return freed memory to the system, so that taking it again is seen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def grown_while_saving(compute: Compute, directory: Path) -> tuple[float, dict[str, float]]:
    """(MiB of a model's weights, MiB that this rank holds more while it saves them under ZeRO-3, by how).

    The last one copies the whole model, as a measure of what would be seen.
    """
    config = run_config(GRID, zero_stage=3, width=512, layers=8, checkpoint=CheckpointConfig(background=False))
    nodes = {"one rank a node": ((0,), (1,)), "two ranks of a node": ((0, 1),)}
    found: dict[str, float] = {}
    with _engine(compute, config, lively_model(config.model), None) as engine:
        batch = make_batch(10, 8, 2).on_rank(0, GRID, compute.rank)
        train_step(engine, batch, _call(compute, GRID, 32, config), compute, SEED, 1e-3)
        for name, known in nodes.items():
            writer = CheckpointWriter(directory / name, config, replace(compute, known_nodes=known), "0" * 16)
            _give_back()
            with grown() as growth:
                writer.save(engine, RunState(1, 0, 256))
            found[name] = growth()
        _give_back()
        with grown() as growth:
            whole = [torch.empty(each.ds_shape).fill_(1.0) for each in engine.module.parameters()]
        found["whole"] = growth()
        return sum(each.numel() for each in whole) * 4 / 2**20, found
