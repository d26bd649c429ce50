"""`hyena-ds bench step`: sides that take turns at one optimizer step. The parent's part; imports no torch.

    plan sides --> leave out what does not fit --> limits of the machine --> start --> check values
    --> predicted time --> one warm-up step each --> rounds: a step of each side in turn --> rows, table

A side that runs out of memory ends with a status; the others go on.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hyena_ds.bench.attention_fit import carried_on
from hyena_ds.bench.case import STANDALONE, Side, case_of
from hyena_ds.bench.limits import Limits, say
from hyena_ds.bench.processes import Ranks, available_memory_gib
from hyena_ds.bench.report import Row, save
from hyena_ds.bench.step_rows import LIMITED, add_measured, mean_of_ranks, new_row, print_rows
from hyena_ds.bench.turns import Sides, Turn
from hyena_ds.bench.values import check_gradients, check_loss
from hyena_ds.errors import UserError

_LIVE_TOKENS = 1 << 16
"""Tokens times layers of a process above which the peak of live tensors is recorded on request only."""


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and the machine they were measured on."""
    check_reference(options.reference)
    plans = [plan_sides(options, length) for length in options.context_length]
    limits = Limits()
    rows: list[Row] = []
    for sides in plans:
        for side in sides:
            if side.kind in LIMITED:
                limits.of(side.case)
        if options.parts and "accelerator" in limits.machine:
            raise UserError(
                f"--parts: found {limits.machine['accelerator']}, which runs behind the clock, wanted a CPU; "
                "leave --parts out, and profile a run there with torch.profiler"
            )
        available = None if "accelerator" in limits.machine else available_memory_gib()
        fitting, found = _that_fit(sides, available)
        rows += found
        groups = _groups(fitting, available)
        if len(groups) > 1:
            say(f"the sides do not fit into memory together: {len(groups)} groups run one after the other")
        wanted = Wanted()
        for group in groups:
            rows += _measured(options, group, limits, wanted, len(groups) == 1)
        save(options.json, limits.machine, rows)
    clock = "wall_seconds" if "accelerator" in limits.machine else "cpu_seconds"
    print_rows(rows, *carried_on(rows, clock), *limits.lines())
    return rows, limits.machine


def check_reference(reference: str | None) -> None:
    """Raise UserError unless the clone is there, if one is named."""
    if reference is not None and not (Path(reference) / STANDALONE).is_file():
        raise UserError(
            f"--reference {reference}: found no {STANDALONE} there, wanted a clone of HazyResearch/hyena-dna; "
            "git clone https://github.com/HazyResearch/hyena-dna"
        )


def plan_sides(options: argparse.Namespace, length: int) -> list[Side]:
    """The sides at one context length. Raises UserError when numbers do not fit each other."""
    sides: list[Side] = []
    for allocator, precision in product(options.allocator, options.precision):
        case = partial(case_of, options, length, allocator=allocator)
        ours = partial(case, precision=precision)
        whole = {"sequence_parallel": 1, "policy": "balanced", "kernels": "portable"}
        theirs = case(precision=options.reference_precision or precision, **whole)
        for sp, policy, kernels in product(options.sequence_parallel, options.policy, options.kernels):
            sides.append(Side("hyena-ds", ours(sequence_parallel=sp, policy=policy, kernels=kernels)))
        for sp in options.sequence_parallel:
            first = ours(sequence_parallel=sp, policy=options.policy[0], kernels=options.kernels[0])
            if options.engine:
                sides.append(Side("hyena-ds engine", first))
            if options.halves and sp > 1:
                sides.append(Side("unrelated jobs", first))
        if options.reference is not None:
            sides.append(Side("published", theirs, options.reference))
        if options.transformer is not None:
            sides += [
                Side("transformer", theirs, checkpointed=way == "checkpointed")
                for way in options.transformer or ["plain"]
            ]
    return list(dict.fromkeys(sides))


class Wanted:
    """Values of the first side of a context length; the others that begin with its weights must have them too."""

    def __init__(self) -> None:
        self._short: dict[int, tuple[str, float, dict[str, Any]]] = {}
        self._first: tuple[Side, float] | None = None

    def short_pass(self, side: Side, loss: float, gradients: dict[str, Any]) -> None:
        """Loss and gradients at the checked length, in float32. Raises WrongValue."""
        length = side.case.checked_length
        label, wanted_loss, wanted = self._short.setdefault(length, (side.label, loss, gradients))
        what = f"{side.label} beside {label}"
        check_loss(loss, wanted_loss, what)
        check_gradients(gradients, wanted, what)

    def first_step(self, side: Side, loss: float) -> float:
        """Loss of the first step, at the full length; returns its relative error. Raises WrongValue."""
        if self._first is None:
            self._first = (side, loss)
        other, wanted = self._first
        what = f"{side.label} beside {other.label} at {side.case.context_length:,} tokens"
        check_loss(loss, wanted, what, (side.case.precision, other.case.precision))
        return abs(loss - wanted) / wanted


def _measured(
    options: argparse.Namespace, group: list[Side], limits: Limits, wanted: Wanted, interleaved: bool
) -> list[Row]:
    """A row for each of the sides, which are alive at once."""
    rows = {side: new_row(side) for side in group}
    with Sides(rows) as sides:
        sides.start({side: _start(side) for side in group})
        for side in sides.alive():
            _prepare(options, sides, side, wanted)
        for side in sides.alive():
            if (turn := sides.ask(side, "step")) is not None:
                _check_first_step(rows[side], side, turn, wanted)
        turns = sides.take_turns("step", options.rounds)
        for side in sides.alive():
            live, case = None, side.process_case
            if options.live or case.batch * case.local_length * case.layers <= _LIVE_TOKENS:
                live = sides.ask(side, "live")
            if options.parts and side.kind == "hyena-ds":
                parts = sides.ask(side, "parts")
                rows[side]["parts"] = None if parts is None else mean_of_ranks(parts)
            if side in sides.alive() or live is not None:
                rates = limits.of(side.case) if side.kind in LIMITED else None
                add_measured(rows[side], side, turns[side], live, rates, interleaved)
    return list(rows.values())


def _start(side: Side) -> Ranks:
    case = side.process_case
    arguments: dict[str, Any] = {} if side.reference is None else {"reference": side.reference}
    if side.kind == "transformer":
        arguments["checkpointed"] = side.checkpointed
    say(f"starting {side.label} at {side.case.context_length:,} tokens")
    return Ranks(side.worker, side.processes, side.grouped, case.threads, case.allocator, case=case, **arguments)


def _prepare(options: argparse.Namespace, sides: Sides[Side], side: Side, wanted: Wanted) -> None:
    """Values at a short length, against the first side that has these weights; then what a step will take."""
    answers = sides.ask(side, "prepare")
    if answers is None:
        return
    first, row = answers[0], sides.rows[side]
    for note in first.get("notes", []):
        say(note)
    row["memory_at_start_gib"] = max(answer["memory_at_start_gib"] for answer in answers)
    if side.kind in LIMITED:
        wanted.short_pass(side, first["loss"], first["gradients"])
        row["values_checked"] = True
    if "scouted" not in first:
        return
    length, seconds = first["scouted"]
    minutes = row["predicted_minutes"] = seconds * side.growth(length) * (options.rounds + 1) / 60
    if minutes > options.limit_minutes:
        sides.drop(
            side,
            f"skipped: about {minutes:,.0f} minutes from {seconds:.2f} s at {length:,} tokens, more than "
            f"--limit-minutes {options.limit_minutes:g}",
        )


def _check_first_step(row: Row, side: Side, turn: Turn, wanted: Wanted) -> None:
    """At the full length too, sides with the same weights begin with the same loss."""
    loss = sum(answer["loss"] for answer in turn)
    row["first_loss"] = loss if side.kind != "unrelated jobs" else loss / side.processes
    if side.kind in LIMITED:
        row["first_loss_relative_error"] = wanted.first_step(side, loss)
        say(f"{side.label}: loss of the first step {loss:.8f}")


def _that_fit(sides: list[Side], available: float | None) -> tuple[list[Side], list[Row]]:
    """Sides whose memory there is, and rows for the others."""
    fitting, left_out = [], []
    for side in sides:
        if available is None or side.memory_gib() <= available:
            fitting.append(side)
            continue
        row = new_row(side)
        row["status"] = f"skipped: needs about {side.memory_gib():.0f} GiB, and {available:.0f} GiB are available"
        say(f"{side.label} at {side.case.context_length:,} tokens: {row['status']}")
        left_out.append(row)
    return fitting, left_out


def _groups(sides: list[Side], available: float | None) -> list[list[Side]]:
    """Sides that are alive at once, in order: as many as fit into memory."""
    groups: list[list[Side]] = []
    for side in sides:
        if groups and (available is None or sum(s.memory_gib() for s in [*groups[-1], side]) <= available):
            groups[-1].append(side)
        else:
            groups.append([side])
    return groups
