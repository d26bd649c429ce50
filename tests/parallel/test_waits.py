"""What counts as a wait, and whether a device stands in one: by the thread's clock, or by marks that the test lets a device come to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch

from hyena_ds.bench.bytes import fake_ranks
from hyena_ds.parallel.collectives import Pending, Traffic
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.parallel.waits import CoreQueue, Waits
from hyena_ds.runtime.heartbeat import Member, Place, Pulse
from hyena_ds.runtime.monitor import Seen
from hyena_ds.runtime.watchdog import stuck
from hyena_ds.training.clock import StepClock


class Queue:
    """A device's: marks in their order, and how many of them it has come to."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.passed = 0
        self.asked = 0
        self.broken = False

    def event(self) -> Mark:
        return Mark(self)


class Mark:
    def __init__(self, queue: Queue):
        self.queue = queue

    def record(self) -> None:
        self.queue.marks.append(self)

    def query(self) -> bool:
        self.queue.asked += 1
        if self.queue.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.queue.marks.index(self) < self.queue.passed

    def elapsed_time(self, other: Mark) -> float:
        """A wait takes a second."""
        return 1000.0 * (self.queue.marks.index(other) - self.queue.marks.index(self))


class Work:
    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def wait(self) -> None:
        time.sleep(self.seconds)


def exchanges(number: int) -> tuple[Queue, Waits]:
    """So many that were queued and waited for, with work before and after each."""
    queue = Queue()
    waits = Waits(queue.event)
    traffic = Traffic(waits=waits)
    for _ in range(number):
        Pending(torch.zeros(1), None, Work(), traffic).wait()
    assert traffic.awaited == number and len(queue.marks) == 2 * number
    return queue, waits


def test_a_device_waits_from_where_it_came_to_an_exchange_until_it_is_past_it() -> None:
    queue, waits = exchanges(3)
    found = []
    for queue.passed in range(7):
        found.append(waits.stands())
    assert found == [False, True, False, True, False, True, False]
    asked = queue.asked
    assert not waits.stands() and queue.asked == asked, "nothing is left to ask about"


def test_a_wait_of_a_device_counts_when_it_is_past_it_and_is_not_asked_about_again() -> None:
    queue, waits = exchanges(3)
    found = []
    for queue.passed in (1, 2, 5, 6):
        found.append(waits.seconds())
    assert found == [0.0, 1.0, 2.0, 3.0]
    asked = queue.asked
    assert waits.seconds() == 3.0 and not waits.stands() and queue.asked == asked


def test_the_thread_stands_still_while_it_waits_and_a_wait_within_another_is_part_of_it() -> None:
    waits = Waits()
    traffic = Traffic(waits=waits)
    with waits.counted():
        Pending(torch.zeros(1), None, Work(0.02), traffic).wait()
    assert 0.02 <= waits.seconds() == waits.seconds()
    assert 0.02 <= traffic.seconds_waited <= waits.seconds() and not waits.stands()


def test_a_thread_stands_in_the_queue_while_another_has_its_core_and_not_while_it_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, core = CoreQueue(), min(os.sched_getaffinity(0))
    time.sleep(0.1)
    asleep = queue.seconds()
    other = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"])
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [core])
        until = time.monotonic() + 60
        waits = Waits(queue=queue)
        while queue.seconds() < asleep + 0.05 and time.monotonic() < until:
            with waits.counted():
                sum(range(10_000))
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, before)
    assert queue.seconds() >= asleep + 0.05
    assert 0 < waits.queued <= queue.seconds() - asleep
    monkeypatch.setattr("hyena_ds.parallel.waits.FileIO", missing)
    nobody = CoreQueue()
    assert nobody.seconds() == nobody.seconds() == 0.0, "not on Linux"


def missing(path: str) -> None:
    raise FileNotFoundError(path)


def test_a_broken_device_is_left_to_its_own_thread() -> None:
    queue, waits = exchanges(1)
    queue.broken = True
    assert not waits.stands()


def test_marks_of_a_long_run_do_not_pile_up() -> None:
    queue = Queue()
    waits = Waits(queue.event)
    traffic = Traffic(waits=waits)
    for _ in range(50):
        Pending(torch.zeros(1), None, Work(), traffic).wait()
        queue.passed = len(queue.marks)
    assert len(waits._pairs) == 1


def test_every_exchange_of_a_pass_is_marked() -> None:
    queue = Queue()
    traffic = Traffic(waits=Waits(queue.event))
    with fake_ranks(4) as rank:
        layout = Layout.slice_of(64, Topology(1, 4), rank, create_groups([4], rank, 4), traffic)
        exchange = layout.exchange
        exchange.to_tokens(exchange.to_channels(torch.zeros(1, 8, 16)))
        exchange.from_left(torch.zeros(1, 2)).wait()
    assert traffic.awaited == traffic.started > 2
    assert len(queue.marks) == 2 * traffic.awaited


def test_only_ranks_with_a_queue_have_marks() -> None:
    on_cpu, on_device = (StepClock(Compute(torch.device(kind), "none", 0, 1, 0)) for kind in ("cpu", "meta"))
    assert on_cpu.waits._event is None and on_device.waits._event is not None
    assert not on_cpu.device_waits() and not on_device.device_waits()


def seen(rank: int, waiting: bool) -> Seen:
    pulse = Pulse("step", 3, "update", 9, 10.0)
    return Seen(Place(rank, "host", "machine", 100 + rank), pulse, 100.0, 0.0, "step.py:1 (train_step)", waiting)


def test_the_rank_whose_device_computes_is_the_one_that_the_others_wait_for() -> None:
    waits = [exchanges(1) for _ in range(3)]
    for rank, (queue, _) in enumerate(waits):
        queue.passed = 0 if rank == 1 else 1
    fault = stuck([seen(rank, where.stands()) for rank, (_, where) in enumerate(waits)], 100.0)
    assert fault is not None and fault.rank == 1 and "is the one that the others wait for" in fault.text


def test_a_beat_says_that_the_device_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("hyena_ds.runtime.heartbeat.main_thread_place", lambda: ("step.py:1 (train_step)", False))
    member = Member.__new__(Member)
    member._lock, member._pulse, member._wires = threading.Lock(), Pulse(), []
    member.device_waits = lambda: False
    monkeypatch.setattr(member, "_tell", lambda message, only_if_read=False: told.append(message))
    member.beat()
    member.device_waits = lambda: True
    member.beat()
    assert [message["waiting"] for message in told] == [False, True]
