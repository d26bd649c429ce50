"""Dropout masks depend on what an activation is, not on where or when it is computed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_ds.ops.dropout import DropoutKey, keyed_dropout

B, L, D = 4, 32, 48


def mask(
    *,
    seed: int = 1,
    step: int = 2,
    samples: tuple[int, ...] = (0, 1, 2, 3),
    layer: int = 3,
    offset: int = 0,
    length: int = L,
    probability: float = 0.25,
) -> Tensor:
    key = DropoutKey(seed, step, torch.tensor(samples))
    return keyed_dropout(torch.ones(len(samples), length, D), probability, key, layer, offset)


@pytest.mark.parametrize("cuts", [(0, 32), (0, 16, 32), (0, 1, 5, 31, 32)])
def test_the_mask_does_not_depend_on_how_the_sequence_is_cut(cuts: tuple[int, ...]) -> None:
    slices = [mask(offset=a, length=b - a) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(slices, 1), mask())


@pytest.mark.parametrize("edge", [1 << 31, 1 << 32, 1 << 33])
def test_past_the_thirty_second_bit_masks_still_do_not_depend_on_the_cut_and_do_not_repeat(edge: int) -> None:
    across = mask(offset=edge - 16)
    assert torch.equal(torch.cat((mask(offset=edge - 16, length=16), mask(offset=edge, length=16)), 1), across)
    rows = lambda offset: {tuple(row) for row in mask(offset=offset, samples=(0,))[0].tolist()}  # noqa: E731
    assert len(rows(edge)) == L
    for other in (0, 1 << 16, edge - (1 << 16), edge // 2, edge + (1 << 16), 2 * edge):
        assert not rows(edge) & rows(other), other
    share = float((mask(offset=edge, samples=tuple(range(64))) == 0).double().mean())
    assert abs(share - 0.25) < 0.01


def test_the_mask_does_not_depend_on_how_the_batch_is_cut_or_ordered() -> None:
    assert torch.equal(torch.cat([mask(samples=(0,)), mask(samples=(1, 2, 3))]), mask())
    assert torch.equal(mask(samples=(3, 1)), mask()[[3, 1]])


def test_the_mask_does_not_touch_or_read_a_generator() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = mask()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(mask(), first)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability_and_the_mean_is_kept(probability: float) -> None:
    dropped = mask(samples=tuple(range(64)), probability=probability)
    spread = (probability * (1 - probability) / dropped.numel()) ** 0.5
    assert abs(float((dropped == 0).double().mean()) - probability) < 5 * spread
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_sample_position_or_channel_is_favoured(axis: int) -> None:
    dropped = (mask(samples=tuple(range(32)), probability=0.5) == 0).double()
    others = [other for other in range(3) if other != axis]
    count = dropped.numel() // dropped.shape[axis]
    assert float((dropped.mean(others) - 0.5).abs().max()) < 6 * 0.5 / count**0.5


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 3}, {"samples": (4, 5, 6, 7)}, {"layer": 4}, {"offset": 32}])
def test_another_seed_step_sample_layer_or_position_has_an_unrelated_mask(change: dict[str, Any]) -> None:
    one, other = mask(probability=0.5) == 0, mask(probability=0.5, **change) == 0
    agreement = float((one == other).double().mean())
    assert abs(agreement - 0.5) < 5 * 0.5 / one.numel() ** 0.5


def test_without_a_key_or_with_probability_zero_nothing_is_dropped() -> None:
    x = torch.randn(2, 3, 4)
    assert keyed_dropout(x, 0.5, None, 0, 0) is x
    assert keyed_dropout(x, 0.0, DropoutKey(0, 0, torch.arange(2)), 0, 0) is x


def test_the_gradient_has_the_mask_of_the_forward_and_the_dtype_is_kept() -> None:
    x = torch.ones(B, L, D, dtype=torch.bfloat16, requires_grad=True)
    y = keyed_dropout(x, 0.25, DropoutKey(1, 2, torch.arange(B)), 3, 0)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and torch.equal(x.grad, y.detach())
