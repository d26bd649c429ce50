"""What counts as a wait: by the thread's clock, or between a device's events once it has passed them."""

from __future__ import annotations

import time

import pytest

from hyena_ds.parallel.collectives import Pending, Traffic
from hyena_ds.parallel.waits import Waits


class Work:
    def wait(self) -> None:
        time.sleep(0.02)


class Event:
    """A device's event: recorded at a time of the device's own, passed when the device says so."""

    now, passed = 0.0, -1.0

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


def test_the_thread_stands_still_while_it_waits_and_a_wait_within_another_is_part_of_it() -> None:
    waits = Waits()
    pending = Pending(None, None, Work(), Traffic(waits=waits))  # type: ignore[arg-type]
    with waits.counted():
        pending.wait()
    assert 0.02 <= waits.seconds() == waits.seconds()
    assert pending.traffic is not None and 0.02 <= pending.traffic.seconds_waited <= waits.seconds()


def test_on_a_device_a_wait_counts_when_it_has_passed() -> None:
    waits = Waits(Event)
    for length in (2.0, 3.0):
        with waits.counted():
            Event.now += length
    assert waits.seconds() == 0.0
    Event.passed = 2.0
    assert waits.seconds() == pytest.approx(2.0)
    Event.passed = 5.0
    assert waits.seconds() == pytest.approx(5.0) == waits.seconds()
