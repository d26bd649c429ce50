"""A slow rank is named within two windows, and nobody is in a thousand quiet steps."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hyena_ds.monitoring.stragglers import Pace, Stragglers, judge

STEPS = 1000
Times = Callable[[random.Random, int, int], float]
"""(random numbers, step, rank) -> seconds that the rank computes."""


def named_in(ranks: int, window: int, seed: int, planted: Times = lambda draw, step, rank: 1.0) -> dict[int, set[int]]:
    """Who is named after which step, where steps of 0.1 s have lognormal noise, and pauses that come to all ranks, as of a
    shared disk, or to one alone; `planted` multiplies a rank's time."""
    draw, stragglers, found = random.Random(seed), Stragglers(1.5), {}
    paces = [Pace() for _ in range(ranks)]
    for step in range(1, STEPS + 1):
        shared = 1.0 if draw.random() < 0.02 else 0.0
        alone = draw.randrange(ranks) if draw.random() < 0.01 else None
        compute = [
            0.1 * draw.lognormvariate(0.0, 0.3) * planted(draw, step, rank) + shared + (1.0 if rank == alone else 0.0)
            for rank in range(ranks)
        ]
        for pace, own in zip(paces, compute, strict=True):
            pace.add(own, max(compute) - own)
        if step % window == 0:
            means = [pace.window() for pace in paces]
            _, named = stragglers.add([mean[0] for mean in means], [mean[1] for mean in means])
            if named:
                found[step] = set(named)
    return found


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize("window", [10, 50])
def test_nobody_is_named_in_a_thousand_quiet_steps(ranks: int, window: int) -> None:
    for seed in range(5 if ranks < 64 else 1):
        assert named_in(ranks, window, seed) == {}


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_throttled_rank_and_one_that_is_stopped_in_pulses_are_named_within_two_windows(ranks: int) -> None:
    throttled = named_in(ranks, 50, 1, lambda draw, step, rank: 2.0 if rank == 1 and step > 500 else 1.0)
    assert throttled == {step: {1} for step in range(600, STEPS + 1, 50)}
    # Stopped for the time of eleven steps in every sixth: the others of its steps are as quick as everybody's.
    pulses = named_in(
        ranks, 50, 1, lambda draw, step, rank: 12.0 if rank == 1 and step > 500 and step % 6 == 0 else 1.0
    )
    assert min(pulses) == 600 and all(named == {1} for named in pulses.values())


def test_a_window_says_who_is_slowest_and_by_how_much_of_the_others() -> None:
    window = judge([0.1, 0.1, 0.4, 0.12], [0.3, 0.3, 0.0, 0.28], 1.5)
    assert (window.slowest_rank, window.slowest_times, list(window.slow)) == (2, pytest.approx(4.0), [2])
    assert window.columns() == {
        "compute_seconds": pytest.approx(0.11),
        "wait_seconds": pytest.approx(0.29),
        "slowest_rank": 2,
        "slowest_times": pytest.approx(4.0),
    }
    assert judge([0.2, 0.1], [0.0, 0.1], 1.5).slow == {0: pytest.approx(2.0)}
    assert judge([0.0010, 0.0005], [0.0, 0.0005], 1.5).slow == {}, "half a millisecond delays nobody"
    assert judge([0.0, 0.0], [0.1, 0.1], 1.5).slow == {}
