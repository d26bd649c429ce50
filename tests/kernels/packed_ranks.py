"""What a rank of a real group exchanges twice, packed by the kernel and by PyTorch; in a process that interprets kernels.

P ranks, B batch, D width, l local length, L context length, d = D / P, g some channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hyena_ds.config.policy import POLICIES
from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.long_convolution import convolution_backward, convolution_forward
from hyena_ds.model.triton_kernels import TRITON
from hyena_ds.ops.triton import long_convolution, packing
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Exchange, Layout
from hyena_ds.parallel.topology import Topology, create_groups

D, L = 6, 14
FUSED = replace(long_convolution.FUSED, shortest=1)
Found = dict[str, tuple[bool, int]]
"""By name of an exchange: whether both ways gave the same bits, and how often the kernel was started."""


def both_ways(compute: Compute) -> Found:
    """Every exchange of activations, filters and gradients that a step has. Collective."""
    long_convolution.SHORTEST = 16  # the interpreter is slow
    groups = create_groups([compute.ranks], compute.rank, compute.ranks)
    layout = Layout.slice_of(L, Topology(1, compute.ranks), compute.rank, groups)
    torch.manual_seed(compute.rank)
    found: Found = {}
    for B in (1, 3):
        for dtype in (torch.float32, torch.bfloat16):
            for pieces in (False, True):
                name = f"{B} x {str(dtype)[6:]}{', in pieces' if pieces else ''}"
                found[name] = _through(layout, torch.randn(2, B, D, layout.local_length).to(dtype), pieces)
        call = ForwardPass(layout, policy=POLICIES["leanest"])
        found[f"{B} x convolution"] = _convolved(call, torch.randn(2, B, D, layout.local_length))
    few = torch.randn(2, 1, compute.ranks, layout.local_length)
    found["fused convolution"] = _convolved(replace(call, convolution=FUSED), few)
    found["filter"] = _of_a_filter(layout, torch.randn(1, D, layout.local_length))
    return found


@contextmanager
def _launches() -> Iterator[list[Any]]:
    launch, started = packing.launch, []

    def noted(*arguments: Any) -> None:
        started.append(arguments[0])
        launch(*arguments)

    packing.launch = noted  # type: ignore[assignment]
    try:
        yield started
    finally:
        packing.launch = launch


def _kernel(layout: Layout) -> Exchange:
    return replace(layout.exchange, copy_pieces=packing.copy_pieces)


def _through(layout: Layout, x_2BDl: Tensor, in_pieces: bool) -> tuple[bool, int]:
    """Two tensors in and out, over themselves, the second in float32 where it is made: rounded as it leaves, to what it was."""

    def work(channels: slice, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.flip((-2, -1) if a.dim() == 4 else -1), -2.0 * b.float()

    def through(exchange: Exchange, pieces: bool) -> list[Tensor]:
        tensors = [x.clone() for x in x_2BDl]
        exchange.through_channels(tensors, tensors, work, 2, pieces)
        return tensors

    with _launches() as started:
        found = through(_kernel(layout), in_pieces)
    return _same(found, through(layout.exchange, False)), len(started)


def _convolved(call: ForwardPass, x_2BDl: Tensor) -> tuple[bool, int]:
    D = x_2BDl.shape[2]
    skip_D, k_dL = torch.linspace(-1, 1, D), torch.randn(D // call.layout.exchange.size, L)

    def through(call: ForwardPass) -> list[Tensor]:
        u_BDl, dy_BDl = (x.clone() for x in x_2BDl)
        slot, k, dskip_D = FilterSlot(), k_dL.clone(), torch.zeros_like(skip_D)
        y_BDl, groups = convolution_forward(u_BDl.clone(), k, skip_D, call)
        assert not groups
        results = convolution_backward(dy_BDl, u_BDl, k, skip_D, dskip_D, slot, call, groups, None)
        return [y_BDl, *results, dskip_D, slot.take_gradient()]

    with _launches() as started:
        found = through(replace(call, kernels=TRITON))
    return _same(found, through(replace(call, kernels=replace(TRITON, copy_pieces=None)))), len(started)


def _of_a_filter(layout: Layout, k_1Dl: Tensor) -> tuple[bool, int]:
    def through(exchange: Exchange) -> list[Tensor]:
        k_1dL = exchange.to_channels(k_1Dl)
        return [k_1dL, exchange.to_tokens(k_1dL * 3.0)]

    with _launches() as started:
        found = through(_kernel(layout))
    assert torch.equal(found[1], k_1Dl * 3.0)
    return _same(found, through(layout.exchange)), len(started)


def _same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
