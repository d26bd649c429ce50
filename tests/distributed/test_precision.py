"""Under bfloat16 the implicit filter's gradients are reduced in float32; without the cure they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, run_config, uneven_batches

Ranks = Callable[[int], Pool]


def _filter_gradients(ranks: Ranks, grid: Grid, stage: int, drop_cure: bool) -> dict[str, Tensor]:
    config = run_config(grid, zero_stage=stage, precision="bfloat16")
    # No accumulation: ZeRO 2 and 3 reduce every micro step, and the float32 sum of two rounded ones is not rounded.
    batches = uneven_batches(1, grid, accumulation=1)
    everyone = ranks(2).run(cases.train, grid=grid, config=config, batches=batches, rate=0.05, drop_cure=drop_cure)
    chosen = {name: g for name, g in everyone[0].first_gradients.items() if ".implicit_filter." in name}
    assert len(chosen) == 16
    assert all(bool(g.any()) for g in chosen.values())
    return chosen


def _rounded(gradient: Tensor) -> bool:
    return torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("grid", [Grid(2, 1), Grid(1, 2)], ids=str)
def test_reduced_filter_gradients_are_not_rounded_to_bfloat16(ranks: Ranks, grid: Grid, stage: int) -> None:
    gradients = _filter_gradients(ranks, grid, stage, drop_cure=False)
    assert [name for name, g in gradients.items() if _rounded(g)] == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_without_safe_modules_emptied_the_linear_filter_gradients_are_rounded(ranks: Ranks, stage: int) -> None:
    gradients = _filter_gradients(ranks, Grid(1, 2), stage, drop_cure=True)
    assert all(_rounded(g) for name, g in gradients.items() if not name.endswith("frequency"))
