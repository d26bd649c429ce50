"""The machine's ceilings, measured by processes of their own, once for each number of ranks and each length."""

from __future__ import annotations

import sys
from typing import Any

from hyena_ds.bench.case import Case
from hyena_ds.bench.processes import Ranks
from hyena_ds.bench.report import describe_machine
from hyena_ds.cost.work import Rates
from hyena_ds.text import number


class Limits:
    """What was measured so far."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = {}
        """Processor, cores, memory and torch."""
        self._known: dict[tuple[int, int, int], tuple[Rates, int]] = {}

    def of(self, case: Case) -> tuple[Rates, int]:
        """Rates of one rank while all run, and the points of the FFT."""
        key = (case.sequence_parallel, case.context_length, case.threads)
        if key not in self._known:
            P = case.sequence_parallel
            say(f"measuring the machine: {P} process{'es' if P > 1 else ''}, FFTs for {case.context_length:,} tokens")
            worker = "hyena_ds.bench.machine:Machine"
            with Ranks(worker, P, P > 1, case.threads, "tuned", context_length=case.context_length) as ranks:
                ranks.ready()
                answers = ranks.ask("rates")
            self.machine = answers[0].pop("machine")
            points = answers[0].pop("fft_points")
            slowest = {name: min(answer[name] for answer in answers) for name, value in answers[0].items() if value}
            self._known[key] = (Rates(**{"exchange": None, **slowest}), points)
        return self._known[key]

    def lines(self) -> list[str]:
        """What was measured, for a person."""
        lines = []
        for (P, length, threads), (rates, points) in self._known.items():
            line = (
                f"machine, {P} x {threads} threads, a rank: GEMM {rates.gemm_float32 / 1e9:.0f} GF/s float32, "
                f"{rates.gemm_bfloat16 / 1e9:.0f} bfloat16; FFT of {points:,} points for {length:,} tokens "
                f"{rates.fft / 1e9:.1f} GF/s; copy {rates.copy / 1e9:.0f} GB/s"
            )
            lines.append(line + (f"; exchange {number(rates.exchange / 1e9)} GB/s" if rates.exchange else ""))
        return [*lines, describe_machine(self.machine)] if lines else []


def say(text: str) -> None:
    """Progress, beside the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
