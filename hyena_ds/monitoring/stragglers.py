"""Which ranks are slow, from how long each computed and waited in a window of steps. Takes no torch.

    (compute, wait) of each step of one rank --Pace--> a step's mean in a window
    of all ranks                             --judge--> Window: the slowest rank, by how much, which are slow
    two windows in a row                     --Stragglers--> the ranks that are named

Every rank's step lasts equally long, because the others wait for the slowest: what differs is how much of it is compute. The
noise of single steps is averaged over a window, whose longest step is left out, and a rank is named after two of them: a pause
now and then is nobody's habit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SECONDS = 1e-3
"""Steps that are longer by less delay nobody, and are within what a clock and a scheduler do."""


_FEWEST = 5
"""Steps of a window from which on its longest is left out."""


class Pace:
    """How long one rank computes, and waits, in the steps of a window."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, float]] = []

    def add(self, compute: float, wait: float) -> None:
        """A further step, in seconds."""
        self._steps.append((compute, wait))

    def window(self) -> tuple[float, float]:
        """The means of the steps since the last call, without the one of the most compute; zeros where there are none."""
        kept = sorted(self._steps)[: -1 if len(self._steps) >= _FEWEST else None]
        self._steps = []
        return (0.0, 0.0) if not kept else (statistics.fmean(c for c, _ in kept), statistics.fmean(w for _, w in kept))


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

    def columns(self) -> dict[str, float]:
        """What metrics.jsonl has of it."""
        return {name: value for name, value in vars(self).items() if name != "slow"}


def judge(compute: Sequence[float], waits: Sequence[float], slower: float) -> Window:
    """The window in which rank r computed for `compute[r]` seconds a step, and waited for `waits[r]`; two ranks or more.

    Slow is who took `slower` times the median of the others, and a millisecond a step more.
    """
    ordered = sorted(compute)
    times = {}
    for rank, own in enumerate(compute):
        middle = _median_without(ordered, own)
        times[rank] = own / middle if middle > 0 else 1.0
    slow = {
        rank: many
        for rank, many in times.items()
        if many >= slower and compute[rank] * (1 - 1 / many) >= _LEAST_SECONDS
    }
    slowest = max(times, key=lambda rank: times[rank])
    return Window(statistics.median(compute), statistics.median(waits), slowest, times[slowest], slow)


class Stragglers:
    """The ranks that are named: slow in this window and in the one before."""

    def __init__(self, slower: float):
        self._slower = slower
        self._before: set[int] = set()

    def add(self, compute: Sequence[float], waits: Sequence[float]) -> tuple[Window, dict[int, float]]:
        """A further window, and the slow ranks that are named after it, each with its multiple of the others' median."""
        window = judge(compute, waits, self._slower)
        named = {rank: times for rank, times in window.slow.items() if rank in self._before}
        self._before = set(window.slow)
        return window, named


def _median_without(ordered: Sequence[float], own: float) -> float:
    """The median of sorted numbers without one `own` of them."""
    at = ordered.index(own)
    rest = len(ordered) - 1
    low, high = (rest - 1) // 2, rest // 2
    return (ordered[low + (low >= at)] + ordered[high + (high >= at)]) / 2
