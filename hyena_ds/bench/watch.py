"""`hyena-ds bench watch`: what looking for slow ranks and for other numbers costs beside the step.

    one engine on P ranks --turns--> a step that nobody looks at
                                 --> a step as most are: waits are timed, and what an update changes is summed
                                 --> a step in which the ranks compare too

All are steps of the same engine, in turn, and each that is looked at must find the ranks alike.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from typing import Any

from hyena_ds.bench.case import Case, case_of
from hyena_ds.bench.engine_side import EngineSide
from hyena_ds.bench.limits import say
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread_of_turns
from hyena_ds.bench.turns import interleaved
from hyena_ds.config.watching import CorruptionConfig
from hyena_ds.parallel.devices import Compute
from hyena_ds.text import number
from hyena_ds.training.clock import StepClock
from hyena_ds.training.watch import Watch

_SIDES = {"off": "nobody looks", "noted": "as most steps", "compared": "ranks compare"}


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Three rows for each context length."""
    rows: list[Row] = []
    machine: dict[str, Any] = {}
    for length in options.context_length:
        case = case_of(options, length)
        say(f"starting {case.sequence_parallel} ranks at {length:,} tokens")
        with Ranks(
            "hyena_ds.bench.watch:WatchedSide", case.sequence_parallel, True, case.threads, "tuned", case=case
        ) as ranks:
            turns = interleaved({how: partial(ranks.ask, "turn", how=how) for how in _SIDES}, options.rounds)
            machine = ranks.machine()
        if any(answer["differ"] for each in turns.values() for turn in each for answer in turn):
            raise WrongValue("watch: ranks that compute the same were found to differ; report it")
        found: list[Row] = [
            {
                "side": f"{length:,} tokens, {name}",
                "status": "measured",
                **case.columns(),
                **spread_of_turns(turns[how]),
            }
            for how, name in _SIDES.items()
        ]
        for row in found:
            for kind in ("wall_seconds", "cpu_seconds"):
                row[f"{kind}_ratio"] = row[kind]["median"] / found[0][kind]["median"]
        rows += found
    every = CorruptionConfig().every_steps or 1
    print_table(_COLUMNS, rows, f"by default one step in {every} compares", describe_machine(machine))
    return rows, machine


class WatchedSide(EngineSide):
    """One rank."""

    def __init__(self, compute: Compute, case: Case):
        super().__init__(compute, case)
        self.clock = StepClock(compute)
        self.watch = Watch(self._config(), compute, self.clock)

    def turn(self, how: str) -> dict[str, Any]:
        """A step. Collective."""
        if self.engine is None:
            self.step()
            self.watch.of_engine(self.engine, 0)
        if how == "compared":
            self.watch.saved()
        self.watch.begin(0 if how == "compared" else 1)
        self.watcher = None if how == "off" else self.watch
        with nullcontext() if how == "off" else self.clock.waits.of_deepspeed():
            self.clock.begin()
            answer = self.step()
        seen = self.watch.seen(self.gathered)
        return {**answer, "differ": seen.corrupted is not None}


_COLUMNS: list[Column] = [
    ("step", lambda row: row["side"]),
    ("s: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("times", lambda row: f"{row['wall_seconds_ratio']:.3f}"),
    ("CPU s", lambda row: number(row["cpu_seconds"]["median"])),
    ("times", lambda row: f"{row['cpu_seconds_ratio']:.3f}"),
]
