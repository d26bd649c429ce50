"""What every rank of a pool does for `grids`: a part of a run by the trainer's own code, and what it consumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import StepBatch
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import Interruption
from hyena_ds.runtime.watchdog import Watchdog
from hyena_ds.tasks.next_token import NextTokenTask
from hyena_ds.training import run


class _Enough(Exception):
    """The part of the run that was wanted is done."""


def train_part(compute: Compute, config: Path, overrides: list[str], stop_before: int | None = None) -> None:
    """`hyena-ds train CONFIG OVERRIDES` on the pool's ranks, cut off before a step; what a step read goes to consumed.jsonl."""
    loaded = load_yaml(str(config), RunConfig, overrides)
    directory = RunDirectory(loaded)
    consumed = directory.path / "consumed.jsonl"
    own_step = run.train_step

    def noting_step(engine: Any, batch: StepBatch, this: Any, *rest: Any, **more: Any) -> Any:
        if batch.step == stop_before:
            raise _Enough
        bases = _bases(batch, this.layout.offset)
        if compute.rank == 0:
            with consumed.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": batch.step + 1, "sha256": bases}) + "\n")
        return own_step(engine, batch, this, *rest, **more)

    run.train_step = noting_step
    try:
        watchdog = Watchdog(loaded.watchdog, directory.faults)
        run.train_on(compute, loaded, NextTokenTask(loaded), directory, Interruption(), watchdog)
    except _Enough:
        pass
    finally:
        run.train_step = own_step


def _bases(batch: StepBatch, offset: int) -> str:
    """A hash of the whole global batch, in the order of its samples, whoever read which slice. Collective."""
    mine = [
        (int(number), offset, ids.numpy().tobytes())
        for micro_batch in batch.micro_batches
        for number, ids in zip(micro_batch.samples_B, micro_batch.token_ids_Bl, strict=True)
    ]
    pieces = sorted({piece for rank in from_every_rank(mine) for piece in rank})
    return hashlib.sha256(b"".join(ids for _, _, ids in pieces)).hexdigest()
