"""Which bases a step of a run consumed, and in what order its epochs take the shards. Needs no torch and no ranks.

config of a run + step --the deterministic stream--> for each sample: source, coordinates, strand, epoch, shards
config of a run --> stream.jsonl: a line for each stage, source and epoch, with its first step and its shards
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.shards import ShardIndex
from hyena_ds.data.stream import Sources, StageStream
from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside
from hyena_ds.redaction import shown

EPOCHS_RECORDED = 100
"""Epochs that are recorded of each source in each stage; a toy genome may be read a million times."""


@dataclass(frozen=True)
class Consumed:
    """One sample of a step. Coordinates are 0-based and half-open, of the forward strand."""

    step: int
    """As metrics.jsonl counts, from 1."""
    stage: int
    sample: int
    """Number within the step's global batch."""
    source: str
    """Place of its shards, without secrets."""
    assembly: str
    chromosome: str
    start: int
    end: int
    strand: str
    epoch: int
    """How often the source had been read through before, in this stage."""
    shards: tuple[str, ...]
    """Files that hold its bases."""
    tokens: int
    """The context length. With the last target, a sample is one base longer."""

    def __str__(self) -> str:
        return f"{self.assembly} {self.chromosome}:{self.start}-{self.end} ({self.strand})"


def run_config(run: str | Path) -> RunConfig:
    """The config of the run directory `run`. Raises UserError where there is none."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: found no config.yaml, wanted the directory of a run, like runs/quickstart")
    return load_yaml(file, RunConfig)


def consumed(config: RunConfig, step: int, indices: list[ShardIndex] | None = None) -> list[Consumed]:
    """The samples of `step` (of the run, from 0), in their order. Raises UserError when the run has no such step.

    `indices` are those of the config's sources, which are read where they are left out.
    """
    plan = next((plan for plan in _plans(config) if plan.first_step <= step < plan.end_step), None)
    if plan is None:
        raise UserError(f"step {step + 1}: the run '{config.name}' has the steps 1 to {config.total_steps}")
    stream = StageStream(Sources(config.data, "train", indices), config.seed, plan)
    length = plan.config.context_length
    first = (step - plan.first_step) * plan.config.sequences
    found = []
    for number, sample in enumerate(stream.samples(step - plan.first_step)):
        origin = stream.sources.origin(sample, length)
        source, epoch = stream.epoch(first + number)
        track = stream.sources.tracks[source]
        shards = tuple(track.shards(sample.start, stream.sources.bases(length)))
        found.append(
            Consumed(
                step=step + 1,
                stage=plan.number,
                sample=number,
                source=shown(config.data.sources[source].shards),
                **vars(origin),
                epoch=epoch,
                shards=shards,
                tokens=length,
            )
        )
    return found


def write_order(file: Path, config: RunConfig, indices: list[ShardIndex] | None = None) -> None:
    """Write stream.jsonl for the whole run, the first EPOCHS_RECORDED epochs of it; the same bytes whenever it is written."""
    sources = Sources(config.data, "train", indices)
    with aside(file) as partial, partial.open("w", encoding="utf-8") as out:
        for plan in _plans(config):
            stream = StageStream(sources, config.seed, plan)
            for epoch in stream.epochs(EPOCHS_RECORDED):
                row = {
                    "stage": plan.number,
                    "first_step": plan.first_step + epoch.first_sample // plan.config.sequences + 1,
                    "source": shown(config.data.sources[epoch.source].shards),
                    "epoch": epoch.number,
                    "windows": epoch.windows,
                    "shuffle_shards": config.data.shuffle_shards,
                    "shards": epoch.shards,
                }
                out.write(json.dumps(row) + "\n")


def _plans(config: RunConfig) -> list[StagePlan]:
    """The stages as one rank would run them: the stream depends on no grid."""
    plans: list[StagePlan] = []
    for number, stage in enumerate(config.schedule):
        first = plans[-1].end_step if plans else 0
        plans.append(StagePlan(number, stage, 1, 1, first, stage.sequences, config.activation_policy))
    return plans
