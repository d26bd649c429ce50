"""Loss and gradients of a whole model by Triton kernels, in the interpreter, beside the portable code's.

B batch, L context length.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from bench.card import ranks
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.triton_kernels import TRITON
from hyena_ds.ops.cross_entropy import IGNORED
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from tests.pieces import small_pieces

B, L = 2, 37
CONFIG = ModelConfig(
    width=4, layers=1, maximum_context=L, filter_width=4, filter_shift=0.05, inner_width=6, embedding_dropout=0.1,
    residual_dropout=0.1,
)  # fmt: skip
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Relative to the norm of each parameter's gradient; in bfloat16 of float32's."""


def lively_model() -> HyenaDNA:
    """Weights large enough that every part of the model shows in loss and gradients."""
    model = build_model(CONFIG, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(7, 12, (B, L + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[:, ::10] = IGNORED
    return ids[:, :-1].clone(), targets


def gradients(call: ForwardPass, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    model = lively_model()
    loss, _ = NextToken(model).loss(ids, targets, call)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), **found}


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    assert set(found) == set(wanted)
    return max((float((found[name] - wanted[name]).norm() / wanted[name].norm()), name) for name in wanted)


def whole(policy: PolicyName) -> ForwardPass:
    return ForwardPass(Layout.whole(L), dropout=DropoutKey(5, 6, torch.tensor([3, 9])), policy=POLICIES[policy])


@pytest.mark.parametrize(
    ("policy", "tokens"), [*((policy, 20) for policy in POLICIES), ("balanced", 6), ("leanest", 6)]
)
def test_kernels_give_the_gradients_of_the_portable_code(policy: PolicyName, tokens: int) -> None:
    call = whole(policy)
    wanted = gradients(call, *batch())
    with small_pieces(tokens):  # six leave a tile of one token
        found = gradients(replace(call, kernels=TRITON), *batch())
    error, name = worst(found, wanted)
    assert error <= TOLERANCES[torch.float32], (error, name)


def test_bfloat16_is_as_near_as_its_rounding_and_drops_the_same() -> None:
    call = whole("balanced")
    exact = gradients(call, *batch())
    rounded = replace(call, compute_dtype=torch.bfloat16)
    found, portable = gradients(replace(rounded, kernels=TRITON), *batch()), gradients(rounded, *batch())
    for candidate in (found, portable):
        error, name = worst(candidate, exact)
        assert error <= TOLERANCES[torch.bfloat16], (error, name)


def test_a_step_that_lies_on_the_device_draws_the_same_masks() -> None:
    call = whole("fastest")
    key = DropoutKey(5, torch.tensor(6), torch.tensor([3, 9]))
    wanted, found = gradients(call, *batch()), gradients(replace(call, dropout=key, kernels=TRITON), *batch())
    error, name = worst(found, wanted)
    assert error <= TOLERANCES[torch.float32], (error, name)


@pytest.mark.parametrize(("tokens", "policies"), [(64, ("fastest", "leanest")), (3, ("leanest",))])
def test_sequence_ranks_have_the_gradients_of_one_portable_rank(
    tokens: int, policies: tuple[PolicyName, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, one_at_a_time = GridExecutor.__call__, threading.Lock()

    def locked(self: Any, *arguments: Any, **named: Any) -> Any:
        with one_at_a_time:  # the interpreter puts its own functions into triton.language while it runs
            return launch(self, *arguments, **named)

    monkeypatch.setattr(GridExecutor, "__call__", locked)
    monkeypatch.setattr(ranks, "_L", 14)
    monkeypatch.setattr(ranks, "_CONFIG", replace(CONFIG, width=2, embedding_dropout=0.0, residual_dropout=0.0))
    monkeypatch.setattr(ranks, "POLICIES", {name: POLICIES[name] for name in policies})
    with small_pieces(tokens):  # of three a rank has three tiles, the last of one token
        found = ranks.beside_one_rank(2, TRITON)
    errors = [float(number) for number in re.findall(r"\d+e[-+]\d+", found)]
    assert len(errors) == 2 * len(policies) and max(errors) < TOLERANCES[torch.float32], found
