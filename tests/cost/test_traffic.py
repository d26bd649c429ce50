"""Bytes that kernels read and write, and how many there are: counted again while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import hyena_ds.model.block as block_module
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.traffic import traffic
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken

SHAPE = StepShape(ModelConfig(width=64, layers=2, maximum_context=4096, embedding_dropout=0.0), 4096)


class Counted(TorchDispatchMode):
    """Bytes read and written by every kernel that is not the convolution's: it alone pads, and computes with complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"layers": 0, "filter": 0}
        self.kernels = 0
        self.part = "layers"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if function.is_view or "empty" in name or name in ("_unsafe_view", "detach", "alias", "lift_fresh"):
            return result
        read = {id(t): t for t in tree_flatten(args)[0] if isinstance(t, Tensor)}
        if name == "new_full":  # of its template only the type is read
            read.clear()
        written = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        if name == "copy_":  # what was there is not read; a copy of a view to itself is none
            if args[0].data_ptr() == args[1].data_ptr():
                return result
            read.pop(id(args[0]))
        tensors = [*read.values(), *written]
        if any(t.is_complex() for t in tensors) or name in ("constant_pad_nd", "_fft_r2c", "_fft_c2r"):
            self.kernels += 1
            return result
        self.kernels += 1
        self.bytes[self.part] += sum(t.numel() * t.element_size() for t in tensors)
        return result

    @contextmanager
    def filters_apart(self) -> Iterator[None]:
        """Count what runs in the implicit filter as the filter's."""

        def apart(function: Any) -> Any:
            def counted(*arguments: Any) -> Any:
                self.part = "filter"
                try:
                    return function(*arguments)
                finally:
                    self.part = "layers"

            return counted

        with (
            patch.object(block_module, "evaluate_filter", apart(block_module.evaluate_filter)),
            patch.object(block_module, "filter_gradients", apart(block_module.filter_gradients)),
        ):
            yield


def count(shape: StepShape) -> Counted:
    """What one forward and backward pass moves."""
    objective = NextToken(build_model(shape.config, 1))
    ids_BL = torch.randint(7, 11, (shape.batch, shape.context_length))
    call = ForwardPass(
        Layout.whole(shape.context_length),
        DropoutKey(1, 1, torch.arange(shape.batch)),
        policy=shape.activation_policy,
        compute_dtype=getattr(torch, shape.precision),
    )
    with Counted() as counted, counted.filters_apart():
        objective.loss(ids_BL, ids_BL, call)[0].backward()
    return counted


@pytest.mark.parametrize("policy", KEPT_UNITS)
def test_bytes_and_kernels_are_those_of_the_formula(policy: PolicyName) -> None:
    shape = replace(SHAPE, policy=policy)
    counted, wanted = count(shape), traffic(shape, on_cpu=True)
    assert counted.bytes["layers"] == pytest.approx(wanted.layer_bytes, rel=0.08)
    assert counted.bytes["filter"] == pytest.approx(wanted.filter_bytes, rel=0.15)
    assert counted.kernels == pytest.approx(wanted.kernels, rel=0.25)


def test_bfloat16_adds_its_conversions() -> None:
    shape = replace(SHAPE, precision="bfloat16")
    assert count(shape).bytes["layers"] == pytest.approx(traffic(shape, True).layer_bytes, rel=0.1)


def test_dropout_adds_its_masks() -> None:
    shape = replace(SHAPE, config=replace(SHAPE.config, embedding_dropout=0.1, residual_dropout=0.1))
    assert count(shape).bytes["layers"] == pytest.approx(traffic(shape, True).layer_bytes, rel=0.1)
    more = traffic(shape, True).layer_bytes - traffic(SHAPE, True).layer_bytes
    assert more > 0.5 * traffic(SHAPE, True).layer_bytes


def test_one_rank_sends_nothing_and_more_send_filters_in_pieces() -> None:
    assert traffic(SHAPE, True).messages == 0 == traffic(SHAPE, True).packed_bytes
    cut = traffic(replace(SHAPE, sequence_parallel=2), True)
    # 32 channels a rank are one group: 4 activations, 3 halos, and the filter and its gradient in 8 pieces; 2 layers.
    assert cut.messages == 2 * (4 + 3 + 2 * 8)
    assert cut.packed_bytes == 2 * (4 + 2) * 4 * (4 * 2048 * 64)
    # 4 of 32 channels at 2,048 tokens; at a million no more than two, 8 MiB.
    long = replace(SHAPE, sequence_parallel=2, context_length=1 << 20)
    assert traffic(long, True).messages == 2 * (16 * 4 + 3 + 2 * 16)
