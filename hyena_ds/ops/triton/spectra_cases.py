"""The kernels around the transforms beside PyTorch's operations, as cases.py has the others.

B batch, g channels, N complex points, pairs of numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, view_as_complex, view_as_real

from hyena_ds.ops.fft_convolution import quarter_turn
from hyena_ds.ops.triton import spectra
from hyena_ds.ops.triton.case import Case, Sizes, Tensors


def _make(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(a signal, the first column's, and the spectra of signal, filter and gradient, which are as long here)."""
    shape = sizes.batch, sizes.width, sizes.tokens
    return random(*shape), random(sizes.width), random(*shape, 2), random(1, *shape[1:], 2), random(*shape, 2)


def _points(x: Tensor) -> int:
    return x.shape[-1] + x.shape[-1] // 3


def turn(x: Tensor, points: int, back: bool) -> Tensor:
    """(N,): exp(i pi t / 2N), or its conjugate, complex numbers of x's precision."""
    turn_N = quarter_turn(points, x.device)
    return (turn_N.conj() if back else turn_N).to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)


def _weighted(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    padded = torch.nn.functional.pad(x, (0, _points(x) - x.shape[-1]))
    padded[..., 0] += first
    return (view_as_real(padded * turn(x, _points(x), back=False)),)


def _real_part(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    return ((view_as_complex(U) * turn(x, U.shape[2], back=True)).real[..., : _length(U)],)


def _kernel_real_part(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    return (spectra.real_part(view_as_complex(U), x.new_empty((*U.shape[:2], _length(U)))),)


def _length(U: Tensor) -> int:
    return U.shape[2] - U.shape[2] // 4


def _product(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    return (view_as_real(view_as_complex(U) * view_as_complex(K) / U.shape[2]),)


def _kernel_product(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    out = torch.empty_like(U)
    spectra.product(view_as_complex(U), view_as_complex(K), view_as_complex(out))
    return (out,)


def _correlations(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    u, k, dy = map(view_as_complex, (U, K, dY))
    found = u * k, (u.conj() * dy).sum(0, keepdim=True), dy * k.conj()
    return tuple(view_as_real(value / U.shape[2]) for value in found)


def _kernel_correlations(x: Tensor, first: Tensor, U: Tensor, K: Tensor, dY: Tensor) -> Tensors:
    found = torch.empty_like(U), torch.empty_like(K), torch.empty_like(dY)
    Y, dK, dU = map(view_as_complex, found)
    spectra.correlations(view_as_complex(U), view_as_complex(K), view_as_complex(dY), (Y, dK, dU))
    return found


SPECTRA_CASES = (
    Case(
        "spectra: weights",
        ("weighted",),
        _make,
        lambda x, first, U, K, dY: (view_as_real(spectra.weighted(x, _points(x), first)),),
        _weighted,
        lambda x, first, U, K, dY: spectra.weighted_traffic(x, x.new_empty((*x.shape[:2], _points(x), 2))),
    ),
    Case(
        "spectra: real part",
        ("y",),
        _make,
        _kernel_real_part,
        _real_part,
        lambda x, first, U, K, dY: spectra.real_part_traffic(
            view_as_complex(U), x.new_empty((*U.shape[:2], _length(U)))
        ),
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
