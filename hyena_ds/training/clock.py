"""Where the time of a step goes, on this rank: its own work, the exchanges of the sequence, the wait for its data.

    compute = from the step's begin to the exchange at its end, less the waits in it (parallel/waits.py)
    queued  = of the compute, on a CPU, how long other programs had the core

Nothing is synchronised for it. The clock is read where the process stands still anyway, and its numbers travel in
exchanges that a step has in any case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hyena_ds.data.loader import StepBatch
from hyena_ds.monitoring.stragglers import Pace
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.devices import Compute, largest_of_ranks, peak_memory_gib, waits_take_time
from hyena_ds.parallel.waits import CoreQueue, Waits, timed_event


@dataclass(frozen=True)
class StepCost:
    """What one step took."""

    seconds: float
    """Duration of the step, without the wait for its data."""
    peak_memory_gib: float
    """Most that a rank has held so far; the largest of all ranks."""
    exchange_share: float
    """Part of the step in which ranks waited for exchanges of the sequence, late neighbours included; their mean. NaN where
    it cannot be seen without holding the ranks up, that is on a GPU."""
    input_wait_seconds: float
    """How long the rank that waited longest waited for the step's data."""


class StepClock:
    """One rank's. Its `traffic` goes into the layouts of the training passes, its `waits` hear of DeepSpeed's collectives."""

    def __init__(self, compute: Compute):
        self._event = None if waits_take_time(compute) else timed_event
        self._queue = CoreQueue()
        self.waits = Waits(self._event, self._queue)
        self.traffic = Traffic(waits=self.waits)
        self._compute = compute
        self._input_wait = self._began = self._waited_before = self._all_waits = self._queued = 0.0
        self._ends: tuple[Any, ...] = ()
        self.pace = Pace()

    def reading(self, batches: Iterator[StepBatch]) -> Iterator[StepBatch]:
        """The same batches; how long each kept the run waiting is noted."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._input_wait = time.perf_counter() - began
            yield batch

    def begin(self) -> None:
        """The step begins; its data is here."""
        self._all_waits = self.waits.seconds()
        self._began, self._waited_before = time.perf_counter(), self.traffic.seconds_waited
        self._queued = self.waits.queued - self._queue.seconds()
        self._ends = (self._mark(),)

    def device_waits(self) -> bool:
        """Whether the device stands where it has to wait for others. Any thread may ask."""
        return self.waits.stands()

    def exchange_share(self) -> float:
        """The exchanges' share of the step so far, on this rank."""
        if not waits_take_time(self._compute):
            return math.nan
        return (self.traffic.seconds_waited - self._waited_before) / (time.perf_counter() - self._began)

    def computed(self) -> None:
        """All of the step is done, or queued on the device, but the exchange at its end."""
        self._ends = (self._ends[0], self._mark())
        self._queued += self._queue.seconds() - self.waits.queued

    def end(self, shares: float) -> StepCost:
        """The step is done; `shares` is the sum of the ranks' exchange shares. Collective."""
        seconds = time.perf_counter() - self._began
        self._add(seconds)
        gib, wait = largest_of_ranks((peak_memory_gib(self._compute), self._input_wait), self._compute)
        return StepCost(seconds, gib, shares / self._compute.ranks, wait)

    def _mark(self) -> Any:
        if self._event is None:
            return time.perf_counter()
        event = self._event()
        event.record()
        return event

    def _add(self, seconds: float) -> None:
        """Count a step that took `seconds`: its compute, and as a wait all else. The device has passed all its marks."""
        if len(self._ends) < 2:
            return
        first, last = self._ends
        span = last - first if self._event is None else first.elapsed_time(last) / 1e3
        compute = max(0.0, span - (self.waits.seconds() - self._all_waits))
        queued = max(0.0, self._queued) if self._event is None else 0.0  # a device does not stand in it
        self.pace.add(compute, max(0.0, seconds - compute), queued)
