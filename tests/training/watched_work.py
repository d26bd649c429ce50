"""What every rank of a pool does for `test_watch`: a run by the trainer's own code, in which one rank is slow, or one of
its bits is flipped."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import StepBatch
from hyena_ds.errors import UserError
from hyena_ds.parallel.devices import Compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import Interruption
from hyena_ds.runtime.watchdog import Watchdog
from hyena_ds.tasks.next_token import NextTokenTask
from hyena_ds.training import run
from hyena_ds.training.digest import Digest, differing

BIT = 1 << 20


def train_watched(
    compute: Compute,
    config: Path,
    overrides: list[str],
    flips: dict[int, int],
    throttled: int | None = None,
    cache: str = "",
) -> tuple[int, str]:
    """`hyena-ds train CONFIG OVERRIDES`; exit code, and the sentence that it ended with.

    In step s a bit of the parameters of rank `flips[s]` flips, once. A throttled rank takes six times as long for its passes.
    `cache` is the user's, where a calibration is.
    """
    loaded, own_step, left = load_yaml(str(config), RunConfig, overrides), run.train_step, dict(flips)

    def step(engine: Any, batch: StepBatch, *rest: Any) -> Any:
        if left.pop(batch.step + 1, None) == compute.rank:
            flip(next(engine.module.parameters()))
        if throttled != compute.rank:
            return own_step(engine, batch, *rest)
        own_forward = engine.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = own_forward(*arguments, **named)
            time.sleep(0.05 + 5 * (time.perf_counter() - began))
            return result

        engine.forward = forward
        try:
            return own_step(engine, batch, *rest)
        finally:
            engine.forward = own_forward

    run.train_step, before = step, os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = cache
    try:
        directory = RunDirectory(loaded)
        watchdog = Watchdog(loaded.watchdog, directory.faults)
        return run.train_on(compute, loaded, NextTokenTask(loaded), directory, Interruption(), watchdog), ""
    except UserError as error:
        return error.exit_code, str(error)
    finally:
        run.train_step = own_step
        os.environ["XDG_CACHE_HOME"] = before or ""


def flip(parameter: torch.Tensor) -> None:
    """Another bit in its first element, behind autograd's back."""
    flat = parameter.data.view(-1).view(torch.int32)
    flat[0] ^= BIT


def digests(compute: Compute, config: RunConfig, planted: str) -> list[int]:
    """The ranks that differ after two steps' worth of notes, where rank 1 has a flip `planted` before the second: in its live
    parameters, or in the copy that AdamW updates; and minus 1 for each rank whose own copies differ."""
    from hyena_ds.parallel.agreement import from_every_rank
    from hyena_ds.tasks.next_token import NextTokenTask
    from hyena_ds.training.engine import build_engine

    engine = build_engine(config, NextTokenTask(config).objective(), compute.ranks)
    digest = Digest(compute.device)
    digest.note(engine, compared=False)
    zero = engine.optimizer
    if compute.rank == 1 and planted:
        stage = engine.zero_optimization_stage()
        places = {
            "live": lambda: next(engine.module.parameters()) if stage < 3 else zero.fp16_partitioned_groups_flat[0],
            "updated": lambda: (
                zero.single_partition_of_fp32_groups[0] if stage < 3 else zero.fp32_partitioned_groups_flat[0]
            ),
        }
        flip(places[planted]())
    digest.note(engine, compared=True)
    rows = from_every_rank(tuple(digest.handed_in().tolist()))
    engine.destroy()
    return differing([row[:-1] for row in rows]) + [-1 for row in rows if row[-1]]
