"""Which ranks are slow, from how long each computed and waited in a window of steps. Takes no torch.

    (compute, wait, queued) of each step of one rank --Pace--> Spent: a step's mean in a window, the window's length
    of all ranks                             --judge--> Window: the slowest rank, by how much, which are slow
    windows in a row                         --Stragglers--> the ranks that are named

Every rank's step lasts equally long, because the others wait for the slowest: what differs is how much of it is compute. The
noise of single steps is averaged over a window, whose longest step is left out, and a rank is named after two of them: a pause
now and then is nobody's habit. On a CPU that others use, a rank also stands in the queue for its core. That too is slow, but
most often over after some seconds, in which many windows of short steps pass: who is slow for that alone is named later.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_LEAST_SECONDS = 1e-3
"""Steps that are longer by less delay nobody, and are within what a clock and a scheduler do."""


WINDOWS = 2
"""Windows in a row in which a rank is slow before it is named."""
_FEWEST = 5
"""Steps of a window from which on its longest is left out."""


class Spent(NamedTuple):
    """What one rank did in a window, in seconds."""

    compute: float
    """In a step, on average."""
    wait: float
    """The rest of a step, on average."""
    own: float
    """Compute in a step, on average, less the time in which other programs had the core."""
    window: float
    """In all steps."""


class Pace:
    """How long one rank computes, and waits, in the steps of a window."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, float, float]] = []

    def add(self, compute: float, wait: float, queued: float = 0.0) -> None:
        """A further step, in seconds; of its compute those in which other programs had the core."""
        self._steps.append((compute, wait, max(0.0, compute - queued)))

    def window(self) -> Spent:
        """The steps since the last call, without the one of the most compute; zeros where there are none."""
        kept = slice(-1 if len(self._steps) >= _FEWEST else None)
        steps, own = sorted(self._steps)[kept], sorted(own for _, _, own in self._steps)[kept]
        self._steps = []
        if not steps:
            return Spent(0.0, 0.0, 0.0, 0.0)
        compute, wait = statistics.fmean(step[0] for step in steps), statistics.fmean(step[1] for step in steps)
        return Spent(compute, wait, statistics.fmean(own), (compute + wait) * len(steps))


@dataclass(frozen=True)
class Window:
    """What a window shows; the same on every rank."""

    compute_seconds: float
    """Median of the ranks: compute in a step, on average."""
    wait_seconds: float
    """Median of the ranks: the rest of a step."""
    slowest_rank: int
    slowest_times: float
    """Compute time of the slowest rank, as a multiple of the median of the others."""
    slow: dict[int, float]
    """Ranks above the limit, and the same multiple of each."""
    slow_alone: dict[int, float]
    """The same of what each computed while no other program had its core."""

    def columns(self) -> dict[str, float]:
        """What metrics.jsonl has of it."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, dict)}


def judge(ranks: Sequence[Spent], slower: float) -> Window:
    """What a window shows in which the ranks, two or more, did this.

    Slow is who took `slower` times the median of the others, and a millisecond a step more.
    """
    compute, times = [rank.compute for rank in ranks], _multiples([rank.compute for rank in ranks])
    slowest = max(times, key=lambda rank: times[rank])
    waits = statistics.median(rank.wait for rank in ranks)
    slow, alone = _slow(compute, slower), _slow([rank.own for rank in ranks], slower)
    return Window(statistics.median(compute), waits, slowest, times[slowest], slow, alone)


class Named(NamedTuple):
    """A rank that is slow."""

    times: float
    """Its compute in a step, over the median of the others."""
    compute: float
    """In a step, on average, in seconds."""
    queued: float
    """Seconds of it in which other programs had the core, where it is slow for that; else 0."""


class Stragglers:
    """The ranks that are named: slow in this window and in the one before; for the queue alone, after `seconds` in a row."""

    def __init__(self, slower: float, seconds: float):
        self._slower, self._seconds = slower, seconds
        self._slow_for: dict[int, tuple[int, float]] = {}
        """Windows in a row in which each rank was slow, and their seconds."""
        self._alone_before: set[int] = set()

    def add(self, ranks: Sequence[Spent]) -> tuple[Window, dict[int, Named]]:
        """A further window, and the slow ranks that are named after it."""
        window, lasted = judge(ranks, self._slower), statistics.median(rank.window for rank in ranks)
        before, self._slow_for = self._slow_for, {}
        named = {}
        for rank, times in window.slow.items():
            windows, seconds = before.get(rank, (0, 0.0))
            self._slow_for[rank] = windows, seconds = windows + 1, seconds + lasted
            if windows >= WINDOWS and seconds >= self._seconds:
                named[rank] = Named(times, ranks[rank].compute, ranks[rank].compute - ranks[rank].own)
        for rank, times in window.slow_alone.items():
            if rank in self._alone_before:
                named[rank] = Named(times, ranks[rank].own, 0.0)
        self._alone_before = set(window.slow_alone)
        return window, named


def _slow(compute: Sequence[float], slower: float) -> dict[int, float]:
    """The slow ranks, each with its multiple of the others' median."""
    return {
        rank: times
        for rank, times in _multiples(compute).items()
        if times >= slower and compute[rank] * (1 - 1 / times) >= _LEAST_SECONDS
    }


def _multiples(compute: Sequence[float]) -> dict[int, float]:
    """How many times the median of the others each rank takes."""
    ordered, times = sorted(compute), {}
    for rank, own in enumerate(compute):
        middle = _median_without(ordered, own)
        times[rank] = own / middle if middle > 0 else 1.0
    return times


def _median_without(ordered: Sequence[float], own: float) -> float:
    """The median of sorted numbers without one `own` of them."""
    at = ordered.index(own)
    rest = len(ordered) - 1
    low, high = (rest - 1) // 2, rest // 2
    return (ordered[low + (low >= at)] + ordered[high + (high >= at)]) / 2
