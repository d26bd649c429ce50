"""A step whose loss or gradient norm is not finite leaves nothing behind: at any ZeRO stage and on any grid, what follows
is bit for bit what it would have been without it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from hyena_ds.genome.tokenizer import MASK
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, make_batch, run_config

Ranks = Callable[[int], Pool]


@pytest.mark.parametrize(("grid", "gradient"), [(Grid(2, 1), False), (Grid(1, 2), True)], ids=["loss", "gradient"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_leaves_no_trace(ranks: Ranks, zero_stage: int, grid: Grid, gradient: bool) -> None:
    config = run_config(grid, zero_stage=zero_stage, gradient_clipping=0.5)
    good = [make_batch(number, 8, 2) for number in range(4)]
    bad = make_batch(9, 8, 2)
    # In the first micro step of one row only; where the sequence is cut, in the slice of one rank only.
    bad.token_ids_BL[bad.numbers(grid, 0, 0)[0], 0] = MASK
    steps = [(10, bad), (0, good[0]), (1, good[1]), (11, bad), (12, bad), (2, good[2]), (3, good[3])]
    everyone = ranks(2).run(cases.train_numbered, grid=grid, config=config, steps=steps, gradient=gradient)
    without = ranks(2).run(
        cases.train_numbered, grid=grid, config=config, steps=list(enumerate(good)), gradient=gradient
    )
    for found, wanted in zip(everyone, without, strict=True):
        assert [result.skipped for result in found.results] == [step >= 10 for step, _ in steps]
        assert all(math.isfinite(r.loss) is gradient for r in found.results if r.skipped)
        assert not any(result.skipped for result in wanted.results)
        assert [r for r in found.results if not r.skipped] == wanted.results
        assert found.state.keys() == wanted.state.keys()
        assert all((found.state[key] == wanted.state[key]).all() for key in wanted.state)
    assert all(not moment.any() for found in everyone for moment in found.first_moments), (
        "an update came of the bad first step"
    )
