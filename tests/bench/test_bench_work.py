"""Formulas of a step's flops and bytes, against counts that do not use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyena_ds.bench.case import SEED, case_of_columns
from hyena_ds.cost.work import exchange_bytes, fft_flops, filter_flops, gemm_flops, head_flops
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken

CASE = case_of_columns({"context_length": 512, "maximum_context": 512, "width": 32, "layers": 2, "batch": 2})
HALF = replace(CASE, sequence_parallel=2, batch=1)
SHARD = 256 * 32 * 4
"""Bytes of one activation tensor of a rank, and of its part of a filter."""


class MatrixFlops(TorchDispatchMode):
    """Flops of every matrix product, in-place ones too, wherever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = args[-2:]
            self.total += 2 * left.numel() * right.shape[-1]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["fastest", "balanced", "lean"])
def test_counted_flops_are_those_of_the_formula(policy: str) -> None:
    case = replace(CASE, policy=policy)  # type: ignore[arg-type]
    model = build_model(case.config, SEED)
    ids_BL = torch.randint(7, 11, (case.batch, case.context_length))
    call = ForwardPass(Layout.whole(case.context_length), policy=case.activation_policy)
    with MatrixFlops() as counted:
        NextToken(model).loss(ids_BL, ids_BL, call)[0].backward()
    blocks, implicit = gemm_flops(case), filter_flops(case)
    head = head_flops(case)
    assert counted.total == pytest.approx(blocks.total + implicit.total + head, rel=0.03)
    assert counted.total > blocks.minimum + implicit.minimum + head


def test_transforms_are_those_that_a_layer_needs() -> None:
    one = 2.5 * 1024 * 10 * 32 * 2  # a transform of 1,024 points of 32 channels in 2 layers
    single = replace(CASE, batch=1)
    assert fft_flops(single, 1024).minimum == 6 * one
    assert fft_flops(single, 1024).total == 8 * one
    assert fft_flops(replace(single, policy="fastest"), 1024).total == 6 * one
    assert fft_flops(replace(single, policy="lean"), 1024).total == 9 * one
    assert fft_flops(replace(single, sequence_parallel=2), 1024).total == 4 * one


@pytest.mark.parametrize(
    ("policy", "forward", "backward"),
    [("balanced", 2 + 1, 2 + 1), ("lean", 2 + 1, 4 + 1), ("leanest", 2 + 1, 6 + 2)],
)
def test_least_bytes_are_activation_shards_and_the_filter(policy: str, forward: int, backward: int) -> None:
    case = replace(HALF, policy=policy)  # type: ignore[arg-type]
    layers, leaves = 2, 2  # of two ranks, each keeps half of a shard and sends half
    assert exchange_bytes(case) == (forward * SHARD * layers // leaves, backward * SHARD * layers // leaves)


def test_the_filter_is_exchanged_once_however_many_micro_steps() -> None:
    forward, backward = exchange_bytes(replace(HALF, accumulation=4))
    assert (forward, backward) == ((4 * 2 + 1) * SHARD, (4 * 2 + 1) * SHARD)
    assert exchange_bytes(CASE) == (0, 0)
