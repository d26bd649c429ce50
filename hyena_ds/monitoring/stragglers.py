"""Which ranks are slow, from how long each computed and waited in a window of steps. Takes no torch.

    seconds a step of every rank, a window --judge--> Window: the slowest rank, by how much, which are slow
    two windows in a row                   --Stragglers--> the ranks that are named

Every rank's step lasts equally long, because the others wait for the slowest: what differs is how much of it is compute. The
noise of single steps is averaged over a window, and a pause of one rank alone seldom fills two of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_SECONDS = 1e-3
"""Steps that are longer by less delay nobody, and are within what a clock and a scheduler do."""


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
