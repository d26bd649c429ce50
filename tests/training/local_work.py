"""What every rank of a pool does for `test_local_tier`: a run by the trainer's own code, each rank a host with a disk of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel.devices import Compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import Interruption
from hyena_ds.runtime.watchdog import Watchdog
from hyena_ds.tasks.next_token import NextTokenTask
from hyena_ds.training import run


def train_on_disks(
    compute: Compute, config: Path, overrides: list[str], flipped: int | None = None
) -> tuple[int | str, list[int]]:
    """`hyena-ds train CONFIG OVERRIDES`: (exit code or sentence, steps that were trained).

    In step `flipped` a bit of rank 1's parameters flips, once.
    """
    loaded, own_step, trained, left = (
        load_yaml(str(config), RunConfig, overrides),
        run.train_step,
        list[int](),
        [flipped],
    )

    def step(engine: Any, batch: Any, *rest: Any) -> Any:
        trained.append(batch.step + 1)
        if left == [batch.step + 1]:
            left.clear()
            if compute.rank == 1:
                with torch.no_grad():
                    next(engine.module.parameters()).view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 20)
        return own_step(engine, batch, *rest)

    run.train_step = step
    directory = RunDirectory(loaded)
    try:
        watchdog = Watchdog(loaded.watchdog, directory.faults)
        return run.train_on(compute, loaded, NextTokenTask(loaded), directory, Interruption(), watchdog), trained
    except UserError as error:
        return str(error), trained
    finally:
        run.train_step = own_step
