"""`hyena-ds bench step`: sides that take turns at one optimizer step. The parent's part; imports no torch.

    plan sides --> leave out what does not fit --> limits of the machine --> start --> check values
    --> predicted time --> one warm-up step each --> rounds: a step of each side in turn --> rows, table

A side that runs out of memory ends with a status; the others go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyena_ds.bench.case import STANDALONE, Case, Side
from hyena_ds.bench.limits import Limits, say
from hyena_ds.bench.processes import DidNotFit, Ranks, SideFailed, available_memory_gib
from hyena_ds.bench.report import Row, save
from hyena_ds.bench.step_rows import LIMITED, Turn, add_measured, mean_of_ranks, new_row, print_rows
from hyena_ds.bench.values import check_gradients, check_loss
from hyena_ds.errors import UserError

_LIVE_TOKENS = 1 << 16
"""Tokens times layers of a process above which the peak of live tensors is recorded on request only."""
_SHARING_WEIGHTS = ("hyena-ds", "hyena-ds engine", "published")


def run(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
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
            rows += _Turns(options, group, limits, wanted).rows(len(groups) == 1)
        save(options.json, limits.machine, rows)
    print_rows(rows)
    for line in limits.lines():
        print(f"  {line}")
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
    sides: dict[Side, None] = {}
    for allocator in options.allocator:
        for precision in options.precision:

            def case(sp: int, policy: str, precision: str = precision, allocator: str = allocator) -> Case:
                made = Case(
                    context_length=length,
                    maximum_context=options.maximum_context or length,
                    width=options.width,
                    layers=options.layers,
                    batch=options.batch,
                    accumulation=options.accumulation,
                    sequence_parallel=sp,
                    policy=policy,  # type: ignore[arg-type]
                    precision=precision,  # type: ignore[arg-type]
                    allocator=allocator,  # type: ignore[arg-type]
                    threads=options.threads,
                )
                made.check()
                return made

            first = options.policy[0]
            for sp in options.sequence_parallel:
                for policy in options.policy:
                    sides[Side("hyena-ds", case(sp, policy))] = None
            for sp in options.sequence_parallel:
                if options.engine:
                    sides[Side("hyena-ds engine", case(sp, first))] = None
                if options.halves and sp > 1:
                    sides[Side("unrelated jobs", case(sp, first))] = None
            if options.reference is not None:
                theirs = case(1, "balanced", options.reference_precision or precision)
                sides[Side("published", theirs, options.reference)] = None
            if options.transformer:
                sides[Side("transformer", case(1, "balanced", options.reference_precision or precision))] = None
    return list(sides)


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


class _Turns:
    """Sides that are alive at once."""

    def __init__(self, options: argparse.Namespace, sides: list[Side], limits: Limits, wanted: Wanted):
        self.options, self.sides, self.limits, self.wanted = options, sides, limits, wanted
        self.ranks: dict[Side, Ranks] = {}
        self.row = {side: new_row(side) for side in sides}
        self.turns: dict[Side, list[Turn]] = {side: [] for side in sides}

    def rows(self, interleaved: bool) -> list[Row]:
        """Measure every side; one row each."""
        try:
            self._start()
            self._prepare()
            self._warm_up()
            for number in range(self.options.rounds):
                for side in self._alive():
                    turn = self._ask(side, "step")
                    if turn is not None:
                        self.turns[side].append(turn)
                say(f"round {number + 1} of {self.options.rounds} done")
            for side in self._alive():
                live = None
                case = side.process_case
                if self.options.live or case.batch * case.local_length * case.layers <= _LIVE_TOKENS:
                    live = self._ask(side, "live")
                if self.options.parts and side.kind == "hyena-ds" and side in self.ranks:
                    parts = self._ask(side, "parts")
                    self.row[side]["parts"] = None if parts is None else mean_of_ranks(parts)
                if side in self.ranks or live is not None:
                    limit = self.limits.of(side.case) if side.kind in LIMITED else None
                    add_measured(self.row[side], side, self.turns[side], live, limit, interleaved)
        finally:
            for ranks in self.ranks.values():
                ranks.close()
        return [self.row[side] for side in self.sides]

    def _alive(self) -> list[Side]:
        return [side for side in self.sides if side in self.ranks]

    def _start(self) -> None:
        for side in self.sides:
            case = side.process_case
            arguments = {} if side.reference is None else {"reference": side.reference}
            say(f"starting {side.label} at {side.case.context_length:,} tokens")
            self.ranks[side] = Ranks(
                side.worker, side.processes, side.grouped, case.threads, case.allocator, case=case, **arguments
            )
        for side in self._alive():
            self._attempt(side, self.ranks[side].ready)

    def _prepare(self) -> None:
        """Values at a short length, against the first side that has these weights; then what a step will take."""
        for side in self._alive():
            answers = self._ask(side, "prepare")
            if answers is None:
                continue
            first = answers[0]
            for note in first.get("notes", []):
                say(note)
            self.row[side]["memory_at_start_gib"] = max(answer["memory_at_start_gib"] for answer in answers)
            if "gradients" in first and side.kind in _SHARING_WEIGHTS:
                self.wanted.short_pass(side, first["loss"], first["gradients"])
                self.row[side]["values_checked"] = True
            self._predict(side, first.get("scouted"))

    def _predict(self, side: Side, scouted: tuple[int, float] | None) -> None:
        if scouted is None:
            return
        length, seconds = scouted
        minutes = seconds * side.growth(length) * (self.options.rounds + 1) / 60
        self.row[side]["predicted_minutes"] = minutes
        if minutes > self.options.limit_minutes:
            self._drop(
                side,
                f"skipped: about {minutes:,.0f} minutes from {seconds:.2f} s at {length:,} tokens, more than "
                f"--limit-minutes {self.options.limit_minutes:g}",
            )

    def _warm_up(self) -> None:
        """One step each; at the full length too, sides with the same weights begin with the same loss."""
        for side in self._alive():
            turn = self._ask(side, "step")
            if turn is None:
                continue
            loss = sum(answer["loss"] for answer in turn)
            self.row[side]["first_loss"] = loss if side.kind != "unrelated jobs" else loss / side.processes
            if side.kind in _SHARING_WEIGHTS:
                self.row[side]["first_loss_relative_error"] = self.wanted.first_step(side, loss)
                say(f"{side.label}: loss of the first step {loss:.8f}")

    def _ask(self, side: Side, method: str) -> list[Any] | None:
        return self._attempt(side, lambda: self.ranks[side].ask(method))

    def _attempt(self, side: Side, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DidNotFit as problem:
            self._drop(side, f"did not fit: {problem}")
        except SideFailed as problem:
            print(problem, file=sys.stderr)
            self._drop(side, f"failed: {str(problem).splitlines()[-1]}")
        return None

    def _drop(self, side: Side, status: str) -> None:
        self.row[side]["status"] = status
        say(f"{side.label}: {status}")
        self.ranks.pop(side).close()


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
