"""The model by C functions beside the plain model in float64, and beside the portable code: every policy, tiling and grid.

B batch, L context length.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from bench.card import ranks
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.model import filter as portable
from hyena_ds.model.backbone import build_model
from hyena_ds.model.filter import FilterShape, FilterWeights
from hyena_ds.model.filter_native import evaluate_filter, filter_gradients
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.native_kernels import NATIVE
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from tests.model.golden import relative_error
from tests.model.plain import plain_gradients
from tests.model.test_block_policies import CONFIG, assert_close, batch, gradients, lively_model
from tests.pieces import small_pieces


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("B", "L"), [(1, 1), (2, 2), (1, 3), (3, 5), (2, 17), (1, 101), (3, 700)], ids=str)
@pytest.mark.parametrize("pieces", ["small", "whole"])
def test_loss_and_every_gradient_equal_the_plain_model(policy: PolicyName, B: int, L: int, pieces: str) -> None:
    model = lively_model()
    ids, targets = batch(B, L)
    wanted_loss, _, wanted = plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)
    with small_pieces(*((5, 3) if pieces == "small" else (10**6, 10**6))):
        call = ForwardPass(Layout.whole(L), policy=POLICIES[policy], kernels=NATIVE)
        loss, _ = NextToken(model).loss(ids, targets, call)
        loss.backward()
    assert relative_error(loss, wanted_loss) <= 1e-6
    found = gradients(model)
    # One token feels no other: the gradients of the taps before it are exactly zero in both.
    some = {name for name, gradient in wanted.items() if gradient.any()}
    assert {name for name, gradient in found.items() if gradient.any()} == some
    assert_close({name: found[name] for name in some}, {name: wanted[name] for name in some}, 3e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_is_as_near_float32_as_the_portable_code(policy: PolicyName) -> None:
    ids, targets = batch(2, 300)
    exact = plain_gradients(dict(lively_model().named_parameters()), CONFIG, ids, targets)
    errors = []
    for kernels in (None, NATIVE):
        model = lively_model()
        how = {"policy": POLICIES[policy], "compute_dtype": torch.bfloat16, "kernels": kernels}
        loss, _ = NextToken(model).loss(ids, targets, ForwardPass(Layout.whole(300), **how))  # type: ignore[arg-type]
        loss.backward()
        found = gradients(model)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        errors.append(max(float((found[n].double() - g).norm() / g.norm()) for n, g in exact[2].items()))
        assert 1e-7 < relative_error(loss, exact[0]) < 1e-2
    assert 1e-4 < errors[1] < 1.5 * errors[0], errors


def test_parameters_that_are_not_float32_are_refused() -> None:
    model = lively_model().to(torch.bfloat16)
    with pytest.raises(
        TypeError, match=r"native: found torch.bfloat16, strides .* wanted contiguous float32; set kernels: portable"
    ):
        NextToken(model).loss(*batch(1, 5), ForwardPass(Layout.whole(5), kernels=NATIVE))


@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_dropout_draws_the_masks_of_the_portable_code(policy: PolicyName) -> None:
    config = replace(CONFIG, maximum_context=33, residual_dropout=0.3, embedding_dropout=0.1)
    ids, targets = batch(3, 33)
    key = DropoutKey(1, 2, torch.tensor([4, 0, 9]))
    found = []
    for kernels, pieces in ((None, (10**6, 10**6)), (NATIVE, (7, 3))):
        model = build_model(config, 1)
        with small_pieces(*pieces):
            call = ForwardPass(Layout.whole(33), dropout=key, policy=POLICIES[policy], kernels=kernels)
            loss, _ = NextToken(model).loss(ids, targets, call)
            loss.backward()
        found.append((loss, gradients(model)))
    assert relative_error(found[1][0], found[0][0]) <= 1e-6
    assert_close(found[1][1], found[0][1])


@pytest.mark.parametrize("processes", [2, 3])
def test_sequence_ranks_have_the_gradients_of_one_portable_rank(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_L", 6 * processes)
    monkeypatch.setattr(ranks, "_CONFIG", replace(CONFIG, width=2 * processes, embedding_dropout=0.0))
    with small_pieces(4, 3):
        found = ranks.beside_one_rank(processes, NATIVE)
    errors = [float(number) for number in re.findall(r"\d+e[-+]\d+", found)]
    assert len(errors) == 2 * len(POLICIES) and max(errors) < 1e-5, found


def test_a_filter_far_along_a_million_positions_equals_the_portable_one() -> None:
    shape, (first, length) = FilterShape(24, 1_000_002, 1_000_002, 5, 0.05), (990_000, 9_001)
    generator = torch.Generator().manual_seed(0)
    of_model = build_model(ModelConfig(width=24, layers=1, maximum_context=64), 1).backbone.blocks[0]
    weights = FilterWeights(
        *(
            w.detach() + 0.03 * torch.randn(w.shape, generator=generator)
            for w in of_model.operator.implicit_filter.weights()
        )
    )
    found, wanted = (f(shape, weights, first, length, columns=4) for f in (evaluate_filter, portable.evaluate_filter))
    assert relative_error(found, wanted) < 1e-5
    dk_Dl = torch.randn(24, length, generator=generator)
    of_all = zip(*(f(shape, weights, first, dk_Dl) for f in (filter_gradients, portable.filter_gradients)), strict=True)
    assert max(relative_error(found, wanted) for found, wanted in of_all) < 1e-5
