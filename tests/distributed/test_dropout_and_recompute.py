"""Dropout draws the same masks on every grid, and recompute in backward draws them again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import TOLERANCE, Grid, Trained, make_batch, run_config, series_error

DROPOUT = {"embedding_dropout": 0.1, "residual_dropout": 0.1}
RATE = 0.05

Ranks = Callable[[int], Pool]


def _train(ranks: Ranks, grid: Grid, stage: int, policy: str = "balanced", dropout: bool = True) -> list[Trained]:
    config = run_config(grid, zero_stage=stage, activation_policy=policy, **(DROPOUT if dropout else {}))
    batches = [make_batch(400 + step, 8, 2) for step in range(3)]
    return ranks(grid.ranks).run(cases.train, grid=grid, config=config, batches=batches, rate=RATE)


@pytest.fixture(scope="module")
def one_process(ranks: Ranks) -> list[float]:
    """Losses of grid 1x1."""
    return _train(ranks, Grid(1, 1), 0)[0].losses


def test_dropout_changes_the_losses_at_all(ranks: Ranks, one_process: list[float]) -> None:
    assert series_error(_train(ranks, Grid(1, 1), 0, dropout=False)[0].losses, one_process) > 100 * TOLERANCE


@pytest.mark.parametrize("grid", [Grid(2, 1), Grid(1, 2), Grid(2, 2)], ids=str)
def test_losses_with_dropout_are_the_same_on_every_grid(ranks: Ranks, grid: Grid, one_process: list[float]) -> None:
    for found in _train(ranks, grid, 1):
        assert series_error(found.losses, one_process) <= TOLERANCE, (found.losses, one_process)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("policy", ["balanced", "lean", "leanest"])
def test_every_policy_gives_the_losses_of_the_fastest_at_sp2(ranks: Ranks, policy: str, stage: int) -> None:
    fastest, again = (_train(ranks, Grid(1, 2), stage, name)[0] for name in ("fastest", policy))
    assert again.losses[0] == fastest.losses[0], "the forward pass is one and the same"
    assert series_error(again.losses, fastest.losses) <= TOLERANCE
    assert series_error(again.norms, fastest.norms) <= TOLERANCE
