"""Where the time of a step goes, on this rank: its own work, the exchanges of the sequence, the wait for its data.

Nothing is synchronised for it. The clock is read where the process stands still anyway, and its numbers travel in
exchanges that a step has in any case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hyena_ds.data.loader import StepBatch
from hyena_ds.parallel.collectives import DeviceQueue, Traffic
from hyena_ds.parallel.devices import Compute, largest_of_ranks, new_event, peak_memory_gib, waits_take_time


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
    """One rank's. Its `traffic` goes into the layouts of the training passes."""

    def __init__(self, compute: Compute):
        self.queue = None if waits_take_time(compute) else DeviceQueue(new_event)
        """Where the device waits for exchanges; on a CPU the process itself stands there."""
        self.traffic = Traffic(queue=self.queue)
        self._compute = compute
        self._input_wait = self._began = self._waited_before = 0.0

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
        if self.queue is not None:  # the host has read the last step's loss
            self.queue.is_done()
        self._began, self._waited_before = time.perf_counter(), self.traffic.seconds_waited

    def device_waits(self) -> bool:
        """Whether the device stands where it has to wait for an exchange. Any thread may ask."""
        return self.queue is not None and self.queue.stands()

    def exchange_share(self) -> float:
        """The exchanges' share of the step so far, on this rank."""
        if not waits_take_time(self._compute):
            return math.nan
        return (self.traffic.seconds_waited - self._waited_before) / (time.perf_counter() - self._began)

    def end(self, shares: float) -> StepCost:
        """The step is done; `shares` is the sum of the ranks' exchange shares. Collective."""
        seconds = time.perf_counter() - self._began
        gib, wait = largest_of_ranks((peak_memory_gib(self._compute), self._input_wait), self._compute)
        return StepCost(seconds, gib, shares / self._compute.ranks, wait)
