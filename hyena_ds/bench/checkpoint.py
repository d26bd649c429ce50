"""`hyena-ds bench checkpoint`: for how long a save keeps training waiting, in the background and not, copied to a tier and not.

    engine on 2 ranks, ZeRO stage 1 --save that waits--> seconds
                                    --save in the background--> seconds until training could go on, and until complete
                                    --the same, and a copy to a tier--> the same

The tier is a directory beside. The tensor files of all must be the same; if they are not, nothing is told.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyena_ds.bench.engine_side import run_config
from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread
from hyena_ds.bench.turns import interleaved
from hyena_ds.checkpoints.directory import checkpoints_in
from hyena_ds.checkpoints.engine_state import load_moments
from hyena_ds.checkpoints.manifest import RUN_STATE, RunState, read_checkpoint
from hyena_ds.checkpoints.upload import Uploads
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import CheckpointConfig, TierConfig
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.cost.shape import parameters
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.text import number
from hyena_ds.training.engine import build_engine

_RANKS = 2
_WAITED, _BACKGROUND, _COPIED = "waited for", "in the background", "in the background, and copied"
_TIER = "tier"


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each width."""
    if len(options.width) != len(options.layers):
        raise UserError(
            f"--layers: found {len(options.layers)} numbers, wanted {len(options.width)}, one for each --width"
        )
    rows, described = [], {}
    for width, layers in zip(options.width, options.layers, strict=True):
        say(f"starting {_RANKS} ranks at width {width}, {layers} layers")
        with tempfile.TemporaryDirectory(
            prefix=".bench-checkpoint-", dir=options.directory, ignore_cleanup_errors=True
        ) as scratch:
            arguments = {"width": width, "layers": layers, "directory": scratch}
            with Ranks("hyena_ds.bench.checkpoint:Saver", _RANKS, True, 1, "tuned", **arguments) as ranks:
                rows.append(_row(ranks, options.rounds, width, layers))
                described = ranks.machine()
    print_table(_COLUMNS, rows, describe_machine(described))
    return rows, described


class Saver:
    """One rank, with an engine that has moments and trains nothing."""

    def __init__(self, compute: Compute, width: int, layers: int, directory: str):
        stage = StageConfig(context_length=32, steps=1, micro_batch_size=1, global_batch=compute.ranks)
        self.config = run_config(ModelConfig(width=width, layers=layers, maximum_context=32), stage)
        self.compute, self.directory, self.step = compute, Path(directory), 0
        model = build_model(self.config.model, self.config.seed)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.engine = build_engine(self.config, NextToken(model).to(compute.device), compute.ranks)
        generator = torch.Generator().manual_seed(1)
        load_moments(self.engine, lambda kind, name: [(0, torch.rand(shapes[name].numel(), generator=generator))], 1)

    def turn(self, how: str) -> dict[str, Any]:
        """Save once. Collective."""
        tier = TierConfig(str(self.directory / _TIER), every_steps=1, keep_last=1)
        tiers = (tier,) if how == _COPIED else ()
        kept = CheckpointConfig(every_steps=1, background=how != _WAITED, keep_last=1, tiers=tiers)
        config = dataclasses.replace(self.config, checkpoint=kept)
        uploads = Uploads(config, self.directory, self.compute, say, self.directory / "metrics.jsonl", (self.step,))
        writer = CheckpointWriter(self.directory, config, self.compute, "bench", uploads=uploads)
        self.step += 1
        save = timed(self.compute, lambda: writer.save(self.engine, RunState(self.step, 0, 0)))
        rest = timed(self.compute, lambda: writer.leave(lambda doing: None))
        return {
            "stall_seconds": save.wall_seconds,
            "whole_seconds": save.wall_seconds + rest.wall_seconds,
            "peak_memory_gib": rest.peak_memory_gib,
            "files": [self._sums(self.directory)]
            + ([self._sums(self.directory / _TIER / config.name)] if how == _COPIED else []),
        }

    def _sums(self, directory: Path) -> dict[str, str]:
        """SHA-256 by file of the newest checkpoint, which must be whole, without what says how it was made."""
        manifest = read_checkpoint(checkpoints_in(directory)[0]).manifest
        return {name: file.sha256 for name, file in manifest.files.items() if name != RUN_STATE}


def _row(ranks: Ranks, rounds: int, width: int, layers: int) -> Row:
    sides = {how: partial(ranks.ask, "turn", how=how) for how in (_WAITED, _BACKGROUND, _COPIED)}
    turns = interleaved(sides, rounds)
    sums = [each for of_side in turns.values() for turn in of_side for answer in turn for each in answer["files"]]
    if any(each != sums[0] for each in sums):
        raise WrongValue(
            "checkpoint: files written in the background, or copied, differ from those that were waited for; report it"
        )

    def seconds(how: str, what: str) -> dict[str, float]:
        return spread(max(answer[what] for answer in turn) for turn in turns[how])

    waited, stall = seconds(_WAITED, "whole_seconds"), seconds(_BACKGROUND, "stall_seconds")
    model = ModelConfig(width=width, layers=layers, maximum_context=32)
    row: Row = {"side": f"width {width}, {layers} layers", "status": "measured", "width": width, "layers": layers}
    row |= {
        "parameters": parameters(model),
        "ranks": _RANKS,
        "zero_stage": 1,
        "wall_seconds": waited,
        "stall_seconds": stall,
    }
    row |= {"background_seconds": seconds(_BACKGROUND, "whole_seconds")}
    row |= {"stall_share": stall["median"] / waited["median"]}
    row |= {"copied_stall_seconds": seconds(_COPIED, "stall_seconds")}
    row |= {"copied_seconds": seconds(_COPIED, "whole_seconds")}
    row["peak_memory_gib"] = max(answer["peak_memory_gib"] for answer in turns[_COPIED][-1])
    return row


_COLUMNS: list[Column] = [
    ("model", lambda row: row["side"]),
    ("million parameters", lambda row: number(row["parameters"] / 1e6)),
    ("s waited: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("s stalled in the background", lambda row: shown_spread(row, "stall_seconds")),
    ("share", lambda row: f"{row['stall_share']:.0%}"),
    ("s until complete", lambda row: shown_spread(row, "background_seconds")),
    ("s stalled with a copy", lambda row: shown_spread(row, "copied_stall_seconds")),
    ("s until copied", lambda row: shown_spread(row, "copied_seconds")),
    ("peak GiB a rank", lambda row: number(row["peak_memory_gib"])),
]
