"""Every policy gives the loss, logits and gradients of the plain model in float64, whatever the pieces are.

B batch, L context length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.cross_entropy import IGNORED
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from tests.model.golden import relative_error
from tests.model.plain import plain_gradients
from tests.pieces import small_pieces

TOLERANCE = 1e-5
CONFIG = ModelConfig(
    width=12, layers=2, maximum_context=700, filter_width=8, embedding_dropout=0.0, filter_shift=0.05, inner_width=20
)


def lively_model() -> HyenaDNA:
    """Weights large enough that every part of the model shows in loss and gradients."""
    model = build_model(CONFIG, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(B: int, L: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(7, 12, (B, L + 1), generator=torch.Generator().manual_seed(100 * B + L + seed))
    targets = ids[:, 1:].clone()
    if L > 2:
        targets[:, :: 1 + L // 3] = IGNORED
    return ids[:, :-1].clone(), targets


def gradients(model: HyenaDNA) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert set(found) == set(wanted)
    errors = {name: relative_error(found[name], wanted[name]) for name in wanted}
    assert max(errors.values()) <= tolerance, max((error, name) for name, error in errors.items())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("B", "L"), [(1, 2), (1, 3), (1, 5), (3, 5), (2, 17), (1, 101), (3, 700)], ids=str)
@pytest.mark.parametrize("pieces", ["small", "whole"])
def test_loss_logits_and_every_gradient_equal_the_plain_model(policy: PolicyName, B: int, L: int, pieces: str) -> None:
    model = lively_model()
    ids, targets = batch(B, L)
    wanted_loss, wanted_logits, wanted = plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)
    with small_pieces(*((5, 3) if pieces == "small" else (10**6, 10**6))):
        call = ForwardPass(Layout.whole(L), policy=POLICIES[policy])
        loss, scored = NextToken(model).loss(ids, targets, call)
        loss.backward()
        with torch.no_grad():
            logits = model(ids)
    assert int(scored) == int((targets != IGNORED).sum())
    assert relative_error(loss, wanted_loss) <= TOLERANCE
    assert relative_error(logits, wanted_logits) <= TOLERANCE
    assert_close(gradients(model), wanted)


def test_a_single_token_gets_through() -> None:
    model = lively_model()
    ids, targets = batch(2, 1)
    wanted_loss, _, wanted = plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)
    loss, _ = NextToken(model).loss(ids, targets, ForwardPass(Layout.whole(1)))
    loss.backward()
    assert relative_error(loss, wanted_loss) <= TOLERANCE
    found = gradients(model)
    # One token feels no other: the gradients of the taps before it are exactly zero in both.
    assert_close({n: g for n, g in found.items() if wanted[n].any()}, {n: g for n, g in wanted.items() if g.any()})


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_several_micro_steps_through_one_filter_cache_add_up(policy: PolicyName) -> None:
    model = lively_model()
    parts = [batch(2, 37, seed) for seed in range(3)]
    wanted: dict[str, Tensor] = {}
    for ids, targets in parts:
        for name, gradient in plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)[2].items():
            wanted[name] = wanted.get(name, torch.zeros(())) + gradient
    filters = FilterCache(len(parts))
    for number, (ids, targets) in enumerate(parts):
        filters.begin(number)
        call = ForwardPass(Layout.whole(37), policy=POLICIES[policy], filters=filters)
        loss, _ = NextToken(model).loss(ids, targets, call)
        loss.backward()
        filter_gradient = model.backbone.blocks[0].operator.implicit_filter.output.weight.grad
        assert bool(filter_gradient.any()) == (number == len(parts) - 1), "the filter's backward runs in the last one"
    filters.close()
    assert_close(gradients(model), wanted)


def test_a_filter_cache_evaluates_every_filter_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyena_ds.model import block

    evaluated, original = [], block.evaluate_filter
    monkeypatch.setattr(block, "evaluate_filter", lambda *a: evaluated.append(a[0]) or original(*a))
    model = lively_model()
    filters = FilterCache(4)
    for number in range(4):
        filters.begin(number)
        NextToken(model).loss(*batch(1, 16), ForwardPass(Layout.whole(16), filters=filters))[0].backward()
    assert len(evaluated) == CONFIG.layers


def test_using_the_filters_of_a_step_that_is_over_raises() -> None:
    model = lively_model()
    filters = FilterCache()
    call = ForwardPass(Layout.whole(16), filters=filters)
    loss, _ = NextToken(model).loss(*batch(1, 16), call)
    filters.close()
    with pytest.raises(RuntimeError, match="step that is over"):
        NextToken(model).loss(*batch(1, 16), call)
    with pytest.raises(RuntimeError, match="step that is over"):
        loss.backward()


@pytest.mark.parametrize("policy", ["fastest", "lean", "leanest"])
def test_dropout_draws_the_same_masks_under_every_policy_and_tiling(policy: PolicyName) -> None:
    ids, targets = batch(3, 33)
    found = []
    for name, pieces in (("balanced", (10**6, 10**6)), (policy, (5, 3))):
        model = build_model(
            ModelConfig(width=12, layers=2, maximum_context=33, filter_width=8, residual_dropout=0.3), 1
        )
        key = DropoutKey(1, 2, torch.tensor([4, 0, 9]))
        with small_pieces(*pieces):
            call = ForwardPass(Layout.whole(33), dropout=key, policy=POLICIES[name])  # type: ignore[index]
            loss, _ = NextToken(model).loss(ids, targets, call)
            loss.backward()
        found.append((loss, gradients(model)))
    assert relative_error(found[1][0], found[0][0]) <= TOLERANCE
    assert_close(found[1][1], found[0][1])


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_the_embeddings_dropout_is_that_of_the_whole_sequence_in_any_tiles(probability: float) -> None:
    config = ModelConfig(width=12, layers=1, maximum_context=33, embedding_dropout=probability)
    backbone, (ids, _) = build_model(config, 1).backbone, batch(3, 33)
    backbone.blocks = torch.nn.ModuleList()
    key = DropoutKey(1, 2, torch.tensor([4, 0, 9]))
    embedded = backbone.embedding(ids)
    wanted = keyed_dropout(embedded, probability, key, 0, 0)
    with small_pieces():
        found = backbone.residual(ids, ForwardPass(Layout.whole(33), dropout=key))
        (gradient,) = torch.autograd.grad(found.square().sum(), backbone.embedding.weight)
    assert torch.equal(found, wanted) and bool((found == 0).any()) == (probability > 0)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.square().sum(), backbone.embedding.weight)[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_block_inside_torch_checkpoint_gives_the_same_gradients(policy: PolicyName) -> None:
    from torch.utils.checkpoint import checkpoint

    model = lively_model()
    block = model.backbone.blocks[0]
    x = torch.randn(2, 19, CONFIG.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for wrapped in (False, True):
        call = ForwardPass(Layout.whole(19), policy=POLICIES[policy])
        y = checkpoint(block, x, call, use_reentrant=False) if wrapped else block(x, call)
        found.append(torch.autograd.grad(y.square().sum(), (x, *block.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_autocast_around_the_model_changes_nothing(policy: PolicyName) -> None:
    found = []
    for enabled in (False, True):
        model = lively_model()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = NextToken(model).loss(*batch(1, 40), ForwardPass(Layout.whole(40), policy=POLICIES[policy]))
        loss.backward()
        found.append((loss, gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_products_stay_near_float32_and_leave_filter_and_parameters_float32(policy: PolicyName) -> None:
    model = lively_model()
    ids, targets = batch(2, 64)
    wanted_loss, _, wanted = plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)
    call = ForwardPass(Layout.whole(64), policy=POLICIES[policy], compute_dtype=torch.bfloat16)
    loss, _ = NextToken(model).loss(ids, targets, call)
    loss.backward()
    assert 1e-7 < relative_error(loss, wanted_loss) < 1e-2
    assert_close(gradients(model), wanted, 0.1)
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}


def test_without_grad_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyena_ds.model import block

    kept: list[bool] = []

    def spy(original: Callable[..., Any], *arguments: Any) -> Any:
        (its_pass,) = (argument for argument in arguments if isinstance(argument, ForwardPass))
        kept.append(any(vars(its_pass.policy).values()))
        return original(*arguments)

    for name in ("operator_forward", "mlp_forward"):
        monkeypatch.setattr(block, name, partial(spy, getattr(block, name)))
    call = ForwardPass(Layout.whole(32), policy=POLICIES["fastest"])
    with torch.no_grad():
        loss, _ = NextToken(lively_model()).loss(*batch(1, 32), call)
    assert loss.grad_fn is None and kept == [False] * 4
    NextToken(lively_model()).loss(*batch(1, 32), call)
    assert kept[4:] == [True] * 4, "the check would see nothing"
