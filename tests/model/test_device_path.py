"""The forms that kernels have on a device, run on a CPU: the same loss, gradients and masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import hyena_ds.model.filter as filter_module
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops import place
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from tests.model.test_block_policies import (
    CONFIG,
    TOLERANCE,
    assert_close,
    batch,
    gradients,
    lively_model,
    plain_gradients,
    relative_error,
    small_pieces,
)


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "on_device", lambda device: True)
    monkeypatch.setattr(filter_module, "_BLOCK", 7)


def passes(call: ForwardPass, B: int, L: int, dropout: float = 0.0) -> Iterator[object]:
    model = lively_model()
    for block in model.backbone.blocks:
        block.dropout = dropout
    loss, _ = NextToken(model).loss(*batch(B, L), call)
    loss.backward()
    yield loss.detach()
    yield gradients(model)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("B", "L"), [(1, 2), (1, 3), (2, 17), (1, 101), (2, 700)], ids=str)
@pytest.mark.parametrize("pieces", [(5, 3), (10**6, 10**6)], ids=["small", "whole"])
def test_loss_and_every_gradient_equal_the_plain_model(
    policy: PolicyName, B: int, L: int, pieces: tuple[int, int]
) -> None:
    ids, targets = batch(B, L)
    wanted_loss, _, wanted = plain_gradients(dict(lively_model().named_parameters()), CONFIG, ids, targets)
    with small_pieces(*pieces):
        loss, found = passes(ForwardPass(Layout.whole(L), policy=POLICIES[policy]), B, L)
    assert relative_error(loss, wanted_loss) <= TOLERANCE
    assert_close(found, wanted)


@pytest.mark.parametrize("policy", POLICIES)
def test_micro_steps_share_a_filter_that_stays_as_it_is(policy: PolicyName) -> None:
    parts = [batch(2, 37, seed) for seed in range(3)]
    model = lively_model()
    wanted: dict[str, torch.Tensor] = {}
    for ids, targets in parts:
        for name, gradient in plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)[2].items():
            wanted[name] = wanted.get(name, torch.zeros(())) + gradient
    filters = FilterCache(len(parts))
    for number, (ids, targets) in enumerate(parts):
        filters.begin(number)
        call = ForwardPass(Layout.whole(37), policy=POLICIES[policy], filters=filters)
        NextToken(model).loss(ids, targets, call)[0].backward()
    assert_close(gradients(model), wanted)


@pytest.mark.parametrize("policy", ["fastest", "leanest"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bfloat16_with_dropout_is_that_of_the_cpu_to_its_rounding(
    policy: PolicyName, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = DropoutKey(7, 3, torch.arange(2))
    call = ForwardPass(Layout.whole(101), key, policy=POLICIES[policy], compute_dtype=torch.bfloat16)
    with small_pieces(5, 3):
        loss, found = passes(call, 2, 101, dropout)
        monkeypatch.setattr(place, "on_device", lambda device: False)
        wanted_loss, wanted = passes(replace(call, filters=FilterCache()), 2, 101, dropout)
    assert relative_error(loss, wanted_loss) <= 2e-3
    assert_close(found, wanted, 0.05)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_mask_has_the_bits_that_it_has_on_a_cpu(probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 1.0 + torch.rand(3, 200, 65)
    key = DropoutKey((1 << 40) + 5, 11, torch.tensor([0, 1, 1 << 33]))
    found = keyed_dropout(x, probability, key, 4, (1 << 32) - 100)
    monkeypatch.setattr(place, "on_device", lambda device: False)
    wanted = keyed_dropout(x, probability, key, 4, (1 << 32) - 100)
    assert torch.equal(found == 0, wanted == 0) and 0 < int((wanted == 0).sum()) < x.numel()
    torch.testing.assert_close(found, wanted)
