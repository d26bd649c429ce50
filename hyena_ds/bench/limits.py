"""The machine's ceilings, measured by processes of their own, once for each number of ranks and each length."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

from hyena_ds.bench.case import Case, case_of
from hyena_ds.bench.processes import Ranks
from hyena_ds.bench.report import Column, Row, describe_machine, print_table
from hyena_ds.cost.work import Ceilings
from hyena_ds.ops.sizes import fft_length
from hyena_ds.text import number


class Limits:
    """What was measured so far."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        """Processor, cores, memory and torch."""
        self._known: dict[tuple[int, int, int], Ceilings] = {}

    def of(self, case: Case) -> Ceilings:
        """Rates of one rank while all run."""
        key = (case.sequence_parallel, case.context_length, case.threads)
        if key not in self._known:
            P = case.sequence_parallel
            say(f"measuring the machine: {P} process{'es' if P > 1 else ''}, FFTs for {case.context_length:,} tokens")
            found, self.machine = measure_ceilings(P, case.threads, "limits", context_length=case.context_length)
            self._known[key] = Ceilings(**found)
        return self._known[key]

    def lines(self) -> list[str]:
        """What was measured, for a person."""
        lines = []
        for (P, length, threads), rates in self._known.items():
            line = (
                f"machine, {P} x {threads} threads, a rank: GEMM {rates.gemm_float32 / 1e9:.0f} GF/s float32, "
                f"{rates.gemm_bfloat16 / 1e9:.0f} bfloat16; FFT of {fft_length(length):,} points for {length:,} tokens "
                f"{rates.fft / 1e9:.1f} GF/s; copy {rates.copy / 1e9:.0f} GB/s"
            )
            lines.append(line + (f"; exchange {number(rates.exchange / 1e9)} GB/s" if rates.exchange else ""))
        return [*lines, describe_machine(self.machine)] if lines else []


def measure_a_part(
    options: argparse.Namespace, turns: Callable[[Case, int, Limits], list[Row]], columns: list[Column]
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of each context length and allocator, as `turns` measures them, and the machine; printed too."""
    limits = Limits()
    asked = product(options.context_length, options.allocator)
    cases = [case_of(options, length, allocator=allocator) for length, allocator in asked]
    rows = [row for case in cases for row in turns(case, options.rounds, limits)]
    print_table(columns, rows, *limits.lines())
    return rows, limits.machine


def measure_ceilings(ranks: int, threads: int, method: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the slowest of `ranks` ranks reaches, by name, without what is not known of them; and the machine."""
    with Ranks("hyena_ds.bench.ceilings:CeilingsRank", ranks, ranks > 1, threads, "tuned") as group:
        answers, machine = group.ask(method, **arguments), group.machine()
    several = {name: [answer[name] for answer in answers] for name, value in answers[0].items() if value is not None}
    return {name: _slowest(name, values) for name, values in several.items()}, machine


def _slowest(name: str, values: list[Any]) -> Any:
    if name == "transforms":  # pairs of points and rates
        return [min(pairs) for pairs in zip(*values, strict=True)]
    return max(values) if name in ("latency", "kernel") else min(values)


def say(text: str) -> None:
    """Progress, beside the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
