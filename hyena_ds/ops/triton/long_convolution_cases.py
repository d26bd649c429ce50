"""The long convolution's kernels beside the portable functions, as cases.py has the others; float32 whatever the compute dtype is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.ops import fft_convolution
from hyena_ds.ops.triton import long_convolution
from hyena_ds.ops.triton.case import Case, Sizes, Tensors


def _make_convolution(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(u, k, dy)."""
    shape = (sizes.batch, sizes.width, sizes.tokens)
    return random(*shape), random(sizes.width, sizes.tokens), random(*shape)


def _of_backward(found: tuple[Tensor, Tensor, Tensor | None]) -> Tensors:
    du, dk, y = found
    assert y is not None
    return du, dk, y


def _exact_convolution(u: Tensor, k: Tensor, dy: Tensor) -> Tensors:
    points = 2 * u.shape[-1]
    product = torch.fft.rfft(u, n=points) * torch.fft.rfft(k, n=points)
    return (torch.fft.irfft(product, n=points)[..., : u.shape[-1]],)


def _exact_convolution_backward(u: Tensor, k: Tensor, dy: Tensor) -> Tensors:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (u, k)]
        (y,) = _exact_convolution(*leaves, dy)
        return *torch.autograd.grad(y, leaves, dy), y.detach()


CONVOLUTION_CASES = (
    Case(
        "long convolution",
        ("y",),
        _make_convolution,
        lambda u, k, dy: (long_convolution.causal_convolution(u, k),),
        lambda u, k, dy: (fft_convolution.causal_convolution(u, k),),
        lambda u, k, dy: long_convolution.convolution_traffic(u, k),
        _exact_convolution,
    ),
    Case(
        "long convolution backward",
        ("du", "dk", "y"),
        _make_convolution,
        lambda u, k, dy: _of_backward(long_convolution.causal_convolution_backward(dy, u, k, True)),
        lambda u, k, dy: _of_backward(fft_convolution.causal_convolution_backward(dy, u, k, True)),
        lambda u, k, dy: long_convolution.backward_traffic(u, k, True),
        _exact_convolution_backward,
    ),
)
"""The three passes of the long convolution; float32 whatever the compute dtype is."""
