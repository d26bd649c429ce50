"""Which ranks are slow, from how long each computed and waited in a window of steps. Takes no torch.

    (compute, wait) of each step of one rank --Pace--> Spent: a step's mean in a window, the window's length
    of all ranks                             --judge--> Window: the slowest rank, by how much, which are slow
    windows in a row                         --Stragglers--> the ranks that are named

Every rank's step lasts equally long, because the others wait for the slowest: what differs is how much of it is compute. The
noise of single steps is averaged over a window, whose longest step is left out, and a rank is named after two of them: a pause
now and then is nobody's habit. Windows of short steps are over sooner than another program that takes a core for a while, so
the windows in a row must also last some seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_LEAST_SECONDS = 1e-3
"""Steps that are longer by less delay nobody, and are within what a clock and a scheduler do."""


_WINDOWS = 2
"""Windows in a row in which a rank is slow before it is named."""
_FEWEST = 5
"""Steps of a window from which on its longest is left out."""


class Spent(NamedTuple):
    """What one rank did in a window, in seconds."""

    compute: float
    """In a step, on average."""
    wait: float
    """The rest of a step, on average."""
    window: float
    """In all steps."""


class Pace:
    """How long one rank computes, and waits, in the steps of a window."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, float]] = []

    def add(self, compute: float, wait: float) -> None:
        """A further step, in seconds."""
        self._steps.append((compute, wait))

    def window(self) -> Spent:
        """The steps since the last call, without the one of the most compute; zeros where there are none."""
        kept = sorted(self._steps)[: -1 if len(self._steps) >= _FEWEST else None]
        self._steps = []
        compute, wait = sum(c for c, _ in kept), sum(w for _, w in kept)
        steps = max(1, len(kept))
        return Spent(compute / steps, wait / steps, compute + wait)


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


def judge(ranks: Sequence[Spent], slower: float) -> Window:
    """What a window shows in which the ranks, two or more, did this.

    Slow is who took `slower` times the median of the others, and a millisecond a step more.
    """
    compute, waits = [rank.compute for rank in ranks], [rank.wait for rank in ranks]
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
    """The ranks that are named: slow in this window and in the one before, and for `seconds` in a row."""

    def __init__(self, slower: float, seconds: float):
        self._slower, self._seconds = slower, seconds
        self._slow_for: dict[int, tuple[int, float]] = {}
        """Windows in a row in which each rank was slow, and their seconds."""

    def add(self, ranks: Sequence[Spent]) -> tuple[Window, dict[int, float]]:
        """A further window, and the slow ranks that are named after it, each with its multiple of the others' median."""
        window, lasted = judge(ranks, self._slower), statistics.median(rank.window for rank in ranks)
        before, self._slow_for = self._slow_for, {}
        for rank in window.slow:
            windows, seconds = before.get(rank, (0, 0.0))
            self._slow_for[rank] = windows + 1, seconds + lasted
        named = {
            rank: window.slow[rank]
            for rank, (windows, seconds) in self._slow_for.items()
            if windows >= _WINDOWS and seconds >= self._seconds
        }
        return window, named


def _median_without(ordered: Sequence[float], own: float) -> float:
    """The median of sorted numbers without one `own` of them."""
    at = ordered.index(own)
    rest = len(ordered) - 1
    low, high = (rest - 1) // 2, rest // 2
    return (ordered[low + (low >= at)] + ordered[high + (high >= at)]) / 2
