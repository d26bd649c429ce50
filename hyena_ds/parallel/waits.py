"""How long a rank cannot go on because it waits for others: in exchanges of the sequence, and in DeepSpeed's collectives.

    Pending.wait, DeepSpeed's all-reduces, gathers, ... --counted()--> seconds

On a CPU the calling thread stands still, and its clock is read, and how long it could have run meanwhile but another thread had
its core. On a device only the device's own queue stands still: an event before and one after mark the wait there, and their
distance is read later, when both have passed; nobody waits for it. Between them the device stands in the wait, which another
thread can see; the host goes on, and stands nowhere that says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import Any, Protocol

import torch

_COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor"),
)
"""What DeepSpeed asks of its back end in a step, at any ZeRO stage."""


class Event(Protocol):
    """A mark in a device's queue, as `torch.cuda.Event` is one."""

    def record(self) -> None:
        """Put it at the queue's end."""

    def query(self) -> bool:
        """Whether the device has come to it; answers at once."""

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds from this mark to another, once the device has come to both."""


class CoreQueue:
    """How long a thread could have run but another had its core, as Linux counts it; always zero where nobody does.

    A process that is stopped stands in no queue.
    """

    def __init__(self) -> None:
        """Look at the thread that calls."""
        self._file: FileIO | None = None
        with contextlib.suppress(OSError):
            self._file = FileIO(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def seconds(self) -> float:
        """So far."""
        if self._file is None:
            return 0.0
        try:
            return int(os.pread(self._file.fileno(), 64, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            self._file = None
            return 0.0


class Waits:
    """The waits of one rank."""

    def __init__(self, event: Callable[[], Event] | None = None, queue: CoreQueue | None = None):
        """`event` makes a device's event that can be timed; without one the clock of the thread is read, and its `queue`."""
        self._event = event
        self._queue = queue
        self.queued = 0.0
        """Seconds of the waits in which the thread stood in the queue for its core."""
        self._seconds = 0.0
        self._depth = 0
        self._pairs: deque[tuple[Event, Event]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what the block takes as a wait; one inside of another is part of it."""
        self._depth += 1
        began = self._now() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if began is not None:
                self._count(began, self._now())

    def seconds(self) -> float:
        """All waits so far, of a device those that it has passed: after the host has read something from it, all before."""
        with self._lock:
            self._pass_by()
            return self._seconds

    def stands(self) -> bool:
        """Whether the device has come to a wait and not past it. Any thread may ask."""
        try:
            with self._lock:
                self._pass_by()
                return bool(self._pairs) and self._pairs[0][0].query()
        except RuntimeError:  # an error of the device's work, which its own thread will meet
            return False

    @contextmanager
    def of_deepspeed(self) -> Iterator[None]:
        """Count the waits in DeepSpeed's collectives too, during the block."""
        from deepspeed.comm import comm

        backend = comm.cdb
        names = [name for name in _COLLECTIVES if hasattr(backend, name)]
        for name in names:
            setattr(backend, name, partial(self._collective, getattr(backend, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(backend, name)  # the class's own comes to light again

    def _collective(self, issue: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self.counted():
            work = issue(*arguments, **named)
        return work if work is None else _Work(work, self)

    def _now(self) -> Any:
        if self._event is None:
            return time.perf_counter(), 0.0 if self._queue is None else self._queue.seconds()
        event = self._event()
        event.record()
        return event

    def _count(self, began: Any, ended: Any) -> None:
        if self._event is None:
            self._seconds += ended[0] - began[0]
            self.queued += ended[1] - began[1]
            return
        with self._lock:
            self._pass_by()
            self._pairs.append((began, ended))

    def _pass_by(self) -> None:
        while self._pairs and self._pairs[0][1].query():  # events pass in their order
            first, last = self._pairs.popleft()
            self._seconds += first.elapsed_time(last) / 1e3


class _Work:
    """A collective under way, whose wait is counted."""

    def __init__(self, work: Any, waits: Waits):
        self._work, self._waits = work, waits

    def wait(self, *arguments: Any) -> Any:
        with self._waits.counted():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def timed_event() -> Event:
    """A mark for the queue of this process's device, whose distance in time to another can be read."""
    return torch.cuda.Event(enable_timing=True)
