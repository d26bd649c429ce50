"""`hyena-ds bench loader`: samples and tokens a second from the shards of a config, as the first rank reads them.

Every stage is read for some steps with the config's own workers, tensors made and nothing computed with them.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread_of_turns
from hyena_ds.config.arithmetic import StagePlan, plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice, StepBatch, stage_steps
from hyena_ds.data.stream import Sources
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.parallel.devices import Compute


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each stage."""
    if options.steps < 1:
        raise UserError(f"--steps: found {options.steps}, wanted at least 1")
    config = load_yaml(options.config, RunConfig)
    rows: list[Row] = []
    with Ranks("hyena_ds.bench.loader:Reader", 1, False, 1, "tuned", config=config, steps=options.steps) as ranks:
        for plan in plan_stages(config, config.local_ranks or config.widest_sequence_parallel):
            say(f"reading stage {plan.number} of {options.config}")
            (first,) = ranks.ask("check", plan=plan)
            row: Row = {"side": f"stage {plan.number}", "config": options.config, "status": "measured", **first}
            row |= {"context_length": plan.config.context_length, "sequence_parallel": plan.config.sequence_parallel}
            row |= {"workers": config.data.workers}
            row |= spread_of_turns([ranks.ask("turn", plan=plan) for _ in range(options.rounds)])
            row["samples_per_second"] = first["samples"] / row["wall_seconds"]["median"]
            row["tokens_per_second"] = first["tokens"] / row["wall_seconds"]["median"]
            rows.append(row)
        machine = ranks.machine()
    print_table(_COLUMNS, rows, describe_machine(machine))
    return rows, machine


class Reader:
    """The process that reads: rank 0 of the run's grid."""

    def __init__(self, compute: Compute, config: RunConfig, steps: int):
        self.compute, self.config, self.steps = compute, config, steps
        self.sources = Sources(config.data, "train")

    def check(self, plan: StagePlan) -> dict[str, int]:
        """Steps, samples and tokens of a turn. Raises WrongValue unless shapes, ids and repetition are right."""
        batches, again = self._read(plan), self._read(plan)
        length = plan.config.context_length // plan.config.sequence_parallel
        samples = tokens = 0
        for batch, second in zip(batches, again, strict=True):
            for micro_batch, repeated in zip(batch.micro_batches, second.micro_batches, strict=True):
                ids = micro_batch.token_ids_Bl
                right = ids.shape == (plan.micro_batch_size, length) and int(ids.max()) < VOCABULARY
                if not (right and int(ids.min()) >= 0 and bool((ids == repeated.token_ids_Bl).all())):
                    raise WrongValue(
                        f"loader: step {batch.step} of stage {plan.number} is not what it should be; report it"
                    )
                samples, tokens = samples + ids.shape[0], tokens + ids.numel()
        return {"steps": len(batches), "samples": samples, "tokens": tokens}

    def turn(self, plan: StagePlan) -> dict[str, float]:
        """Seconds to read the steps, opening the shards included."""
        return timed(self.compute, lambda: len(self._read(plan))).answer()

    def _read(self, plan: StagePlan) -> list[StepBatch]:
        part = Slice(0, 0, plan.config.context_length // plan.config.sequence_parallel)
        steps = stage_steps(self.config.data, self.config.seed, plan, part, plan.first_step)
        return list(itertools.islice(steps, self.steps))


_COLUMNS: list[Column] = [
    ("loader", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("steps", lambda row: str(row["steps"])),
    ("s: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("CPU s", lambda row: shown_spread(row, "cpu_seconds")),
    ("samples/s", lambda row: f"{row['samples_per_second']:,.0f}"),
    ("tokens/s", lambda row: f"{row['tokens_per_second']:,.0f}"),
]
