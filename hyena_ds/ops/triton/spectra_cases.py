"""The kernels around the transforms beside PyTorch's operations, as cases.py has the others.

B batch, g channels, n tokens; complex numbers as pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, view_as_complex, view_as_real

from hyena_ds.ops.sizes import fft_length
from hyena_ds.ops.triton import spectra
from hyena_ds.ops.triton.case import Case, Sizes, Tensors


def _make(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(a signal, the first column's, and the spectra of signal, filter and gradient, which are as long here)."""
    shape = sizes.batch, sizes.width, sizes.tokens
    return random(*shape), random(sizes.width), random(*shape, 2), random(1, *shape[1:], 2), random(*shape, 2)


def _points(x: Tensor) -> int:
    return fft_length(x.shape[-1], x.device.type == "cpu")


def _padded(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    out = torch.nn.functional.pad(x, (0, _points(x) - x.shape[-1]))
    out[..., 0] += first
    return (out,)


def _product(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    return (view_as_real(view_as_complex(U) * view_as_complex(K) / _points(x)),)


def _kernel_product(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    out = torch.empty_like(U)
    spectra.product(view_as_complex(U), view_as_complex(K), view_as_complex(out), x)
    return (out,)


def _correlations(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    u, k, dy = map(view_as_complex, (U, K, dY))
    found = u * k, (u.conj() * dy).sum(0, keepdim=True), dy * k.conj()
    return tuple(view_as_real(value / _points(x)) for value in found)


def _kernel_correlations(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    found = torch.empty_like(U), torch.empty_like(K), torch.empty_like(dY)
    Y, dK, dU = map(view_as_complex, found)
    spectra.correlations(view_as_complex(U), view_as_complex(K), view_as_complex(dY), x, (Y, dK, dU))
    return found


SPECTRA_CASES = (
    Case(
        "spectra: zeros",
        ("padded",),
        _make,
        lambda x, first, U, K, dY: (spectra.padded(x, _points(x), first),),
        _padded,
        lambda x, first, U, K, dY: spectra.padded_traffic(x, x.new_empty((*x.shape[:2], _points(x)))),
    ),
    Case(
        "spectra: product",
        ("Y",),
        _make,
        _kernel_product,
        _product,
        lambda x, first, U, K, dY: spectra.product_traffic(U, K),
    ),
    Case(
        "spectra: correlations",
        ("Y", "dK", "dU"),
        _make,
        _kernel_correlations,
        _correlations,
        lambda x, first, U, K, dY: spectra.correlations_traffic(U, K, True),
    ),
)
"""They are float32 whatever the compute dtype is."""
