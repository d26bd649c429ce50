"""The share of its time that a run which fails spends on steps that count, beside runs that are played through."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hyena_ds.cost.goodput import HOURS_BETWEEN_FAILURES, Interrupted


def played(run: Interrupted, segments: int, seed: int) -> float:
    """The share, of a run that fails at random moments, in starts too."""
    draw, clock = random.Random(seed), 0.0
    for _ in range(segments):
        left = run.interval + run.save
        while (fails_in := draw.expovariate(1 / run.between_failures)) < left:
            clock, left = clock + fails_in, run.start + run.interval + run.save
        clock += left
    return segments * run.interval / clock


@pytest.mark.parametrize(
    ("run", "tolerance"),
    [
        (Interrupted(100.0, 5.0, 20.0, 400.0), 0.01),
        (Interrupted(100.0, 5.0, 300.0, 400.0), 0.02),
        (Interrupted(10.0, 1.0, 30.0, 5000.0), 0.01),
    ],
)
def test_the_formula_says_what_a_run_that_is_played_through_comes_to(run: Interrupted, tolerance: float) -> None:
    assert run.share == pytest.approx(played(run, 40_000, seed=1), rel=tolerance)


def test_youngs_interval_is_nearly_the_best() -> None:
    run = Interrupted(1.0, save=5.0, start=60.0, between_failures=100_000.0)
    assert run.best_interval == pytest.approx(1000.0)
    shares = {times: replace(run, interval=times * run.best_interval).share for times in (0.5, 0.9, 1, 1.1, 2)}
    assert max(shares, key=lambda times: shares[times]) == 1


def test_a_run_that_never_comes_to_a_checkpoint_makes_no_progress() -> None:
    assert Interrupted(1e12, 1.0, 1.0, 1.0).share == Interrupted(1.0, 1.0, 1e6, 1.0).share == 0.0
    assert Interrupted(100.0, 0.0, 0.0, 1e12).share == pytest.approx(1.0)


def test_the_rate_of_failures_is_one_in_three_hours_of_16384_devices() -> None:
    assert HOURS_BETWEEN_FAILURES / 16_384 == pytest.approx(54 * 24 / 419) == pytest.approx(3.09, abs=0.01)
