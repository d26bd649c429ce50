"""The long convolution's kernels beside the portable functions, as cases.py has the others; float32 whatever the compute dtype is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.ops import fft_convolution
from hyena_ds.ops.triton import long_convolution
from hyena_ds.ops.triton.case import Case, Sizes, Tensors
from hyena_ds.ops.triton.traffic import Traffic


def _make_convolution(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(u, k, dy)."""
    shape = (sizes.batch, sizes.width, sizes.tokens)
    return random(*shape), random(sizes.width, sizes.tokens), random(*shape)


def _make_pieces(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(u, k, dy) of a third of the tokens, more or less, in each of three pieces (B, g, P, l)."""
    l = max(1, sizes.tokens // 3)
    shape = (3, sizes.batch, sizes.width, l)
    u, dy = (random(*shape).permute(1, 2, 0, 3) for _ in range(2))
    return u, random(sizes.width, 3 * l), dy


def _of_pieces(u: Tensor, k: Tensor, dy: Tensor) -> Tensors:
    y = long_convolution.causal_convolution(u, k)
    du, dk, again = _of_backward(long_convolution.causal_convolution_backward(dy, u, k, True))
    assert y.stride() == du.stride() == again.stride() == u.stride(), "results lie otherwise"
    return y.flatten(2), du.flatten(2), dk, again.flatten(2)


def _put_together(function: Callable[..., Tensors], backward: Callable[..., Tensors]) -> Callable[..., Tensors]:
    def of_whole(u: Tensor, k: Tensor, dy: Tensor) -> Tensors:
        whole = u.flatten(2), k, dy.flatten(2)
        return *function(*whole), *backward(*whole)

    return of_whole


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
    Case(
        "long convolution of pieces",
        ("y", "du", "dk", "y again"),
        _make_pieces,
        _of_pieces,
        _put_together(
            lambda u, k, dy: (fft_convolution.causal_convolution(u, k),),
            lambda u, k, dy: _of_backward(fft_convolution.causal_convolution_backward(dy, u, k, True)),
        ),
        lambda u, k, dy: Traffic(
            *map(
                sum,
                zip(
                    long_convolution.convolution_traffic(u, k),
                    long_convolution.backward_traffic(u, k, True),
                    strict=True,
                ),
            )
        ),
        _put_together(_exact_convolution, _exact_convolution_backward),
    ),
)
"""The three passes of the long convolution; float32 whatever the compute dtype is."""
