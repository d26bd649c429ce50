"""A slow rank is named within two windows, and nobody is in a thousand quiet steps."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hyena_ds.config.watching import StragglersConfig
from hyena_ds.monitoring.stragglers import Pace, Spent, Stragglers, Window, judge

STEPS = 1000
SECONDS = StragglersConfig().seconds
Times = Callable[[random.Random, int, int], float]
"""(random numbers, step, rank) -> by how much the rank's compute is multiplied."""


def named_in(
    ranks: int,
    window: int,
    seed: int,
    planted: Times = lambda draw, step, rank: 1.0,
    step_seconds: float = 0.25,
    bursts: bool = False,
    seconds: float = SECONDS,
) -> dict[int, set[int]]:
    """Who is named after which step, where steps have lognormal noise, and pauses that come to all ranks, as of a shared disk,
    or to one alone. With `bursts` another program takes the core of some rank now and then, for seconds."""
    draw, stragglers, found = random.Random(seed), Stragglers(1.5, seconds), {}
    paces, now, crowded = [Pace() for _ in range(ranks)], 0.0, (0.0, 0, 1.0)
    for step in range(1, STEPS + 1):
        shared = 1.0 if draw.random() < 0.02 else 0.0
        alone = draw.randrange(ranks) if draw.random() < 0.01 else None
        if bursts and now > crowded[0] and draw.random() < step_seconds / 20:
            crowded = (now + draw.uniform(2.0, 12.0), draw.randrange(ranks), draw.uniform(1.5, 4.0))
        compute = [
            step_seconds * draw.lognormvariate(0.0, 0.3) * planted(draw, step, rank)
            + shared
            + (1.0 if rank == alone else 0.0)
            for rank in range(ranks)
        ]
        until, rank, times = crowded
        if now < until:
            compute[rank] *= times
        now += max(compute)
        for pace, own in zip(paces, compute, strict=True):
            pace.add(own, max(compute) - own)
        if step % window == 0:
            _, named = stragglers.add([pace.window() for pace in paces])
            if named:
                found[step] = set(named)
    return found


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize("window", [10, 50])
def test_nobody_is_named_in_a_thousand_quiet_steps(ranks: int, window: int) -> None:
    for seed in range(5 if ranks < 64 else 1):
        assert named_in(ranks, window, seed) == {}


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("window", [10, 50])
def test_a_core_that_others_take_for_seconds_names_nobody_where_steps_are_short(ranks: int, window: int) -> None:
    short = {"step_seconds": 0.06, "bursts": True}  # as measured on a machine of two cores that others use
    assert any(named_in(ranks, window, seed, seconds=0.0, **short) for seed in range(5)), "such bursts are two windows"
    for seed in range(20):
        assert named_in(ranks, window, seed, **short) == {}


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_throttled_rank_and_one_that_is_stopped_in_pulses_are_named_within_two_windows(ranks: int) -> None:
    throttled = named_in(ranks, 50, 1, lambda draw, step, rank: 2.0 if rank == 1 and step > 500 else 1.0)
    assert throttled == {step: {1} for step in range(600, STEPS + 1, 50)}
    # Stopped for the time of eleven steps in every sixth: the others of its steps are as quick as everybody's.
    pulses = named_in(
        ranks, 50, 1, lambda draw, step, rank: 12.0 if rank == 1 and step > 500 and step % 6 == 0 else 1.0
    )
    assert min(pulses) == 600 and all(named == {1} for named in pulses.values())


def test_windows_of_short_steps_last_some_seconds_before_a_rank_is_named() -> None:
    stragglers = Stragglers(1.5, 20.0)
    quiet, slow = [Spent(0.1, 0.0, 5.0)] * 2, [Spent(0.1, 0.1, 9.0), Spent(0.2, 0.0, 9.0)]
    assert [list(stragglers.add(window)[1]) for window in (slow, slow, slow, slow)] == [[], [], [1], [1]]
    assert [list(stragglers.add(window)[1]) for window in (quiet, slow, slow, slow)] == [[], [], [], [1]]
    long = [Spent(1.0, 1.0, 100.0), Spent(2.0, 0.0, 100.0)]
    assert [list(stragglers.add(window)[1]) for window in (quiet, long, long)] == [[], [], [1]], "two windows at least"


def judged(compute: list[float], waits: list[float]) -> Window:
    return judge([Spent(own, wait, 1.0) for own, wait in zip(compute, waits, strict=True)], 1.5)


def test_a_window_says_who_is_slowest_and_by_how_much_of_the_others() -> None:
    window = judged([0.1, 0.1, 0.4, 0.12], [0.3, 0.3, 0.0, 0.28])
    assert (window.slowest_rank, window.slowest_times, list(window.slow)) == (2, pytest.approx(4.0), [2])
    assert window.columns() == {
        "compute_seconds": pytest.approx(0.11),
        "wait_seconds": pytest.approx(0.29),
        "slowest_rank": 2,
        "slowest_times": pytest.approx(4.0),
    }
    assert judged([0.2, 0.1], [0.0, 0.1]).slow == {0: pytest.approx(2.0)}
    assert judged([0.0010, 0.0005], [0.0, 0.0005]).slow == {}, "half a millisecond delays nobody"
    assert judged([0.0, 0.0], [0.1, 0.1]).slow == {}
