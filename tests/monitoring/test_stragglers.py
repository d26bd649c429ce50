"""A slow rank is named within two windows, and nobody is in a thousand quiet steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from hyena_ds.config.watching import StragglersConfig
from hyena_ds.monitoring.stragglers import Named, Pace, Spent, Stragglers, Window, judge

STEPS = 1000
SECONDS = StragglersConfig().seconds
Times = Callable[[random.Random, int, int], float]
"""(random numbers, step, rank) -> by how much the rank's compute is multiplied."""


def named_in(
    ranks: int,
    window: int,
    seed: int,
    planted: Times = lambda draw, step, rank: 1.0,
    step_seconds: float = 0.1,
    bursts: bool = False,
    sees_queue: bool = True,
) -> dict[int, set[int]]:
    """Who is named after which step, where steps have lognormal noise, and pauses that come to all ranks, as of a shared disk,
    or to one alone. With `bursts` another program takes the core of some rank now and then instead, for seconds."""
    draw, stragglers, found = random.Random(seed), Stragglers(1.5, SECONDS), {}
    paces, now, crowded = [Pace() for _ in range(ranks)], 0.0, (0.0, 0, 1.0)
    for step in range(1, STEPS + 1):
        shared = 10 * step_seconds if draw.random() < 0.02 else 0.0
        alone = draw.randrange(ranks) if draw.random() < 0.01 and not bursts else None
        if bursts and now > crowded[0] and draw.random() < step_seconds / 20:
            crowded = (now + draw.uniform(2.0, 12.0), draw.randrange(ranks), draw.uniform(1.5, 4.0))
        compute = [
            step_seconds * draw.lognormvariate(0.0, 0.3) * planted(draw, step, rank)
            + shared
            + (10 * step_seconds if rank == alone else 0.0)
            for rank in range(ranks)
        ]
        until, rank, times = crowded
        queued = [0.0] * ranks
        if now < until:
            queued[rank] = (times - 1) * compute[rank]
            compute[rank] *= times
        now += max(compute)
        for pace, own, in_queue in zip(paces, compute, queued, strict=True):
            pace.add(own, max(compute) - own, in_queue if sees_queue else 0.0)
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
    short: dict[str, Any] = {"step_seconds": 0.06, "bursts": True}  # as on two cores that others use
    assert any(named_in(ranks, window, seed, sees_queue=False, **short) for seed in range(5)), "they last two windows"
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


def test_who_stands_in_the_queue_for_its_core_is_named_after_some_seconds_and_two_windows() -> None:
    def names(stragglers: Stragglers, *windows: list[Spent]) -> list[dict[int, Any]]:
        return [stragglers.add(window)[1] for window in windows]

    quiet = [Spent(0.1, 0.0, 0.1, 5.0)] * 2
    crowded = [Spent(0.1, 0.2, 0.1, 9.0), Spent(0.3, 0.0, 0.1, 9.0)]
    named = {1: Named(pytest.approx(3.0), 0.3, pytest.approx(0.2))}  # type: ignore[arg-type]
    assert names(Stragglers(1.5, 20.0), *[crowded] * 4) == [{}, {}, named, named]
    assert names(Stragglers(1.5, 20.0), crowded, crowded, quiet, crowded, crowded) == [{}] * 5, "in a row"
    assert names(Stragglers(1.5, 5.0), crowded, crowded) == [{}, named], "two windows at least"
    slow = [Spent(0.1, 0.2, 0.1, 1.0), Spent(0.3, 0.0, 0.2, 1.0)]
    assert names(Stragglers(1.5, 20.0), slow, slow) == [{}, {1: Named(pytest.approx(2.0), 0.2, 0.0)}]  # type: ignore[arg-type]


def test_a_window_leaves_out_the_longest_step_of_the_compute_and_of_what_is_left_without_the_queue() -> None:
    pace = Pace()
    for compute, queued in ((1.0, 0.0), (1.0, 0.0), (9.0, 8.0), (5.0, 0.0), (1.0, 0.5)):
        pace.add(compute, 0.5, queued)
    assert pace.window() == Spent(2.0, 0.5, pytest.approx(3.5 / 4), 10.0)  # type: ignore[arg-type]
    assert pace.window() == Spent(0.0, 0.0, 0.0, 0.0)


def judged(compute: list[float], waits: list[float]) -> Window:
    return judge([Spent(own, wait, own, 1.0) for own, wait in zip(compute, waits, strict=True)], 1.5)


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
