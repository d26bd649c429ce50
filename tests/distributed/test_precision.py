"""Under bfloat16 the implicit filter's gradients are reduced in float32; DeepSpeed's own autocast would round them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, run_config, uneven_batches

Ranks = Callable[[int], Pool]


def _filter_gradients(ranks: Ranks, grid: Grid, stage: int, autocast: bool) -> dict[str, Tensor]:
    config = run_config(grid, zero_stage=stage, precision="bfloat16")
    # No accumulation: ZeRO 2 and 3 reduce every micro step, and the float32 sum of two rounded ones is not rounded.
    batches = uneven_batches(1, grid, accumulation=1)
    everyone = ranks(2).run(cases.train, grid=grid, config=config, batches=batches, rate=0.05, autocast=autocast)
    chosen = {name: g for name, g in everyone[0].first_gradients.items() if ".implicit_filter." in name}
    assert len(chosen) == 16
    assert all(bool(g.any()) for g in chosen.values())
    return chosen


def _rounded(gradient: Tensor) -> bool:
    return torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("grid", [Grid(2, 1), Grid(1, 2)], ids=str)
def test_reduced_filter_gradients_are_not_rounded_to_bfloat16(ranks: Ranks, grid: Grid, stage: int) -> None:
    gradients = _filter_gradients(ranks, grid, stage, autocast=False)
    assert [name for name, g in gradients.items() if _rounded(g)] == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_autocast_rounds_the_linear_filter_gradients_and_the_check_sees_it(ranks: Ranks, stage: int) -> None:
    gradients = _filter_gradients(ranks, Grid(1, 2), stage, autocast=True)
    assert all(_rounded(g) for name, g in gradients.items() if not name.endswith("frequency"))


@pytest.mark.parametrize("policy", ["balanced", "leanest"])
def test_exchanges_in_bfloat16_round_and_can_be_left_in_float32(ranks: Ranks, policy: str) -> None:
    def trained(**options: str) -> tuple[float, dict[str, Tensor]]:
        grid = Grid(1, 2)
        config = run_config(grid, activation_policy=policy, **options)
        found = ranks(2).run(cases.train, grid=grid, config=config, batches=uneven_batches(1, grid), rate=0.0)[0]
        return found.losses[0], found.first_gradients

    def distance(found: dict[str, Tensor]) -> float:
        a, b = (torch.cat([each[name].flatten().double() for name in exact]) for each in (found, exact))
        return float((a - b).norm() / b.norm())

    loss, exact = trained()
    rounded_loss, rounded = trained(exchange_precision="bfloat16")
    assert 1e-5 < distance(rounded) < 1e-2 and abs(rounded_loss - loss) < 1e-3 * loss
    _, mixed = trained(precision="bfloat16", exchange_precision="float32")
    _, mixed_throughout = trained(precision="bfloat16")
    assert 1e-5 < distance(mixed) < 0.05 and 1e-5 < distance(mixed_throughout) < 0.05
    assert any(not torch.equal(mixed[name], mixed_throughout[name]) for name in mixed)
