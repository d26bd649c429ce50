"""The reduced gradient is that of (sum of token losses) / (scored targets), on any grid and at any ZeRO stage.

SGD without clipping shows a wrong constant factor, which AdamW and clipping hide.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import pytest

from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.ops.cross_entropy import IGNORED
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import (
    CONTEXT,
    TOLERANCE,
    Grid,
    Trained,
    make_batch,
    reference,
    run_config,
    series_error,
    uneven_batches,
    worst_error,
)

GRIDS = [Grid(1, 1), Grid(2, 1), Grid(1, 2), Grid(2, 2), Grid(1, 4), Grid(4, 1)]
PAIRS = [Grid(2, 1), Grid(1, 2)]
STAGES = [0, 1, 2, 3]
RATE = 0.05
ADAMW_RATE = 5e-3

Ranks = Callable[[int], Pool]
EVERY = list(product(POLICIES, GRIDS, STAGES))


def _spanning() -> list[tuple[PolicyName, Grid, int]]:
    """The default policy in every combination; the others on every grid, and at every ZeRO stage on some grid."""
    chosen = []
    for policy, grid, stage in EVERY:
        turn = (list(POLICIES).index(policy) + GRIDS.index(grid)) % len(STAGES)
        if policy == "balanced" or stage == turn:
            chosen.append((policy, grid, stage))
    return chosen


CASES = EVERY if os.environ.get("HYENA_FULL") else _spanning()
"""`make test-full` runs every combination."""


def _assert_equal(everyone: list[Trained], wanted: Trained) -> None:
    for found in everyone:
        error, name = worst_error(found.first_gradients, wanted.first_gradients)
        assert error <= TOLERANCE, f"gradient of {name}: {error:.1e}"
        assert series_error(found.losses, wanted.losses) <= TOLERANCE, (found.losses, wanted.losses)
        for kind in (found.parameters, found.masters):
            if kind:
                error, name = worst_error(kind, wanted.parameters)
                assert error <= TOLERANCE, f"parameter {name}: {error:.1e}"


@pytest.mark.parametrize(("policy", "grid", "stage"), CASES, ids=str)
def test_sgd_gradients_losses_and_parameters_equal_one_process(
    ranks: Ranks, policy: PolicyName, grid: Grid, stage: int
) -> None:
    config = run_config(grid, zero_stage=stage, activation_policy=policy)
    batches = uneven_batches(5, grid)
    everyone = ranks(grid.ranks).run(cases.train, grid=grid, config=config, batches=batches, rate=RATE)
    wanted = reference(config, batches, RATE)
    _assert_equal(everyone, wanted)
    for found in everyone:
        assert series_error(found.norms, wanted.norms) <= TOLERANCE, (found.norms, wanted.norms)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("grid", PAIRS, ids=str)
def test_adamw_losses_and_norms_under_clipping_equal_one_process(ranks: Ranks, grid: Grid, stage: int) -> None:
    config = run_config(grid, zero_stage=stage, gradient_clipping=0.5)
    batches = uneven_batches(5, grid)
    wanted = reference(config, batches, ADAMW_RATE, adamw=True, clip=0.5)
    assert min(wanted.norms) > 0.5, "nothing would be clipped"
    everyone = ranks(grid.ranks).run(
        cases.train, grid=grid, config=config, batches=batches, rate=ADAMW_RATE, adamw=True
    )
    for found in everyone:
        assert series_error(found.losses, wanted.losses) <= TOLERANCE, (found.losses, wanted.losses)
        assert series_error(found.norms, wanted.norms) <= TOLERANCE, (found.norms, wanted.norms)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_without_any_scored_target_changes_nothing_under_zero3(ranks: Ranks, silent: int) -> None:
    grid = Grid(1, 2)
    config = run_config(grid, zero_stage=3)
    batches = [make_batch(200 + step, 8, 2) for step in range(5)]
    half = CONTEXT // 2
    for batch in batches:
        batch.targets_BL[:, silent * half : (silent + 1) * half] = IGNORED
    everyone = ranks(2).run(cases.train, grid=grid, config=config, batches=batches, rate=RATE)
    _assert_equal(everyone, reference(config, batches, RATE))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("grid", PAIRS, ids=str)
def test_accumulation_may_change_between_steps_of_one_engine(ranks: Ranks, grid: Grid, stage: int) -> None:
    config = run_config(grid, zero_stage=stage)
    batches = [make_batch(300 + step, 2 * count, count) for step, count in enumerate((3, 4, 2))]
    everyone = ranks(2).run(cases.train, grid=grid, config=config, batches=batches, rate=RATE)
    _assert_equal(everyone, reference(config, batches, RATE))
