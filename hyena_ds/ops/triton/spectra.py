"""The long convolution by FFT with kernels around the transforms; beside ops/fft_convolution.py.

    u --zeros--> rfft --> U  \\                              U K / n --> irfft --> y
    k + skip at lag zero --> K  > one kernel, in place:      dY conj(K) / n --> du
    dy --zeros--> rfft --> dY /                              sum over the batch of conj(U) dY / n --> dk

The inverse transform is asked for without its scale, which is a pass of its own. A skip term is a filter of lag zero, so it
is added to the filter. Bytes an element of n complex numbers: forward 24, backward 48 and, from kept spectra, 40.

A signal that came from other ranks is padded from the pieces in which it came, (B, g, P, l).

B batch, g channels, L context length, P pieces, l = L / P, n FFT length, s = n / 2 + 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.convolution_backend import Convolution
from hyena_ds.ops.large import empty
from hyena_ds.ops.sizes import fft_length
from hyena_ds.ops.triton.packing import in_pieces, length_of, pieces_of
from hyena_ds.ops.triton.traffic import Traffic, launch, traffic

_BLOCK = 1024


def convolution_with_skip(skip_g: Tensor) -> Convolution:
    """y = k * u + skip u, and its gradients; `dk` is the filter's, whose first column is the skip's too."""

    def forward_with_spectra(u_BgL: Tensor, k_gL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, K = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g)
        return _signal(product(U, K, torch.empty_like(U), u_BgL), u_BgL), U, K

    def forward(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
        U, K = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g)
        return _signal(product(U, K, U, u_BgL), u_BgL)

    def backward(dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        U, K, dY = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g), _spectrum(dy_BgL)
        correlations(U, K, dY, dy_BgL, (U if again else None, K, dY))
        y_BgL = _signal(U, dy_BgL) if again else None
        del U
        return _signal(dY, dy_BgL), _signal(K, dy_BgL)[0], y_BgL

    def backward_from_spectra(dy_BgL: Tensor, U: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        dY = _spectrum(dy_BgL)
        correlations(U, K, dY, dy_BgL, (None, K, dY))
        return _signal(dY, dy_BgL), _signal(K, dy_BgL)[0]

    return Convolution("fft", forward, backward, forward_with_spectra, backward_from_spectra, takes_pieces=True)


def padded(x_BgL: Tensor, n: int, first_g: Tensor | None = None) -> Tensor:
    """(B, g, n): x, which may be in pieces, then zeros; `first` is added to the first element of each channel."""
    B, g = x_BgL.shape[:2]
    out_Bgn = empty((B, g, n), x_BgL.device)
    launch(
        _padded_kernel, (triton.cdiv(n, _BLOCK), g, B), x_BgL, lambda: padded_traffic(x_BgL, out_Bgn),
        x_BgL, x_BgL.stride(0), x_BgL.stride(1), *pieces_of(x_BgL), first_g, out_Bgn, length_of(x_BgL), n, g,
        x_BgL.dim() == 4, first_g is not None, _BLOCK,
    )  # fmt: skip
    return out_Bgn


def product(U_Bgs: Tensor, K_1gs: Tensor, out_Bgs: Tensor, x_BgL: Tensor) -> Tensor:
    """U K / n into `out`, which may be U; x is a signal of U's."""
    size, blocks, scale = _flat(U_Bgs, K_1gs, x_BgL)
    launch(
        _product_kernel, (blocks, U_Bgs.shape[0]), U_Bgs, lambda: product_traffic(U_Bgs, K_1gs),
        *map(torch.view_as_real, (U_Bgs, K_1gs, out_Bgs)), size, scale, _BLOCK,
    )  # fmt: skip
    return out_Bgs


def correlations(
    U_Bgs: Tensor, K_1gs: Tensor, dY_Bgs: Tensor, x_BgL: Tensor, into: tuple[Tensor | None, Tensor, Tensor]
) -> None:
    """U K / n, the sum over the batch of conj(U) dY / n, and dY conj(K) / n; into U, K and dY themselves, if these are given."""
    size, blocks, scale = _flat(U_Bgs, K_1gs, x_BgL)
    Y, dK, dU = into
    launch(
        _correlations_kernel, (blocks,), U_Bgs, lambda: correlations_traffic(U_Bgs, K_1gs, Y is not None),
        *map(torch.view_as_real, (U_Bgs, K_1gs, dY_Bgs)), None if Y is None else torch.view_as_real(Y),
        torch.view_as_real(dK), torch.view_as_real(dU), size, scale, U_Bgs.shape[0], Y is not None, _BLOCK,
    )  # fmt: skip


def padded_traffic(x: Tensor, out: Tensor) -> Traffic:
    """Bytes of `padded`."""
    return traffic((x,), (out,))


def product_traffic(U: Tensor, K: Tensor) -> Traffic:
    """Bytes of `product`."""
    return traffic((U, K), (U,))


def correlations_traffic(U: Tensor, K: Tensor, again: bool) -> Traffic:
    """Bytes of `correlations`."""
    return traffic((U, K, U), (U, K, U if again else None))


def _flat(U_Bgs: Tensor, K_1gs: Tensor, x_BgL: Tensor) -> tuple[int, int, float]:
    """(complex numbers of a sequence, programs for them, 1 / n)."""
    assert U_Bgs.is_contiguous() and K_1gs.is_contiguous()
    size = K_1gs.numel()
    return size, triton.cdiv(size, _BLOCK), 1.0 / _points(x_BgL)


def _points(x_BgL: Tensor) -> int:
    return fft_length(length_of(x_BgL), x_BgL.device.type == "cpu")


def _spectrum(x_BgL: Tensor, first_g: Tensor | None = None) -> Tensor:
    spectrum: Tensor = torch.fft.rfft(padded(x_BgL, _points(x_BgL), first_g))
    return spectrum


def _signal(spectrum_Bgs: Tensor, x_BgL: Tensor) -> Tensor:
    signal: Tensor = torch.fft.irfft(spectrum_Bgs, n=_points(x_BgL), norm="forward")
    return signal[..., : length_of(x_BgL)]


@triton.jit
def _padded_kernel(
    x, x_B, x_g, x_P, l, first, out, L, n, channels, PIECES: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    value = tl.load(x + b * x_B + g * x_g + in_pieces(t, x_P, l, PIECES), mask=t < L, other=0.0)
    if FIRST:
        value += tl.where(t == 0, tl.load(first + g), 0.0)
    tl.store(out + (b * channels + g) * n + t, value, mask=t < n)


@triton.jit
def _complex(x, at, size):
    """(real, imaginary) parts of numbers that lie in pairs."""
    pairs = 2 * at[:, None] + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(x + pairs, mask=pairs < 2 * size, other=0.0))


@triton.jit
def _keep(x, at, size, real, imaginary):
    pairs = 2 * at[:, None] + tl.arange(0, 2)[None, :]
    tl.store(x + pairs, tl.join(real, imaginary), mask=pairs < 2 * size)


@triton.jit
def _product_kernel(U, K, out, size, scale, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = tl.program_id(1).to(tl.int64) * size * 2
    u, ui = _complex(U + here, at, size)
    k, ki = _complex(K, at, size)
    _keep(out + here, at, size, (u * k - ui * ki) * scale, (u * ki + ui * k) * scale)


@triton.jit
def _correlations_kernel(
    U, K, dY, Y, dK, dU, size, scale, BATCH: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k, ki = _complex(K, at, size)
    k *= scale
    ki *= scale
    total = tl.zeros((BLOCK,), tl.float32)
    totali = tl.zeros((BLOCK,), tl.float32)
    for b in range(BATCH):
        here = b * tl.cast(size, tl.int64) * 2
        u, ui = _complex(U + here, at, size)
        y, yi = _complex(dY + here, at, size)
        total += u * y + ui * yi
        totali += u * yi - ui * y
        _keep(dU + here, at, size, y * k + yi * ki, yi * k - y * ki)
        if AGAIN:
            _keep(Y + here, at, size, u * k - ui * ki, u * ki + ui * k)
    _keep(dK, at, size, total * scale, totali * scale)
