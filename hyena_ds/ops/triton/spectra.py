"""The long convolution by FFT with kernels around the transforms; beside ops/fft_convolution.py, whose right-angle transforms
of N >= L complex points these are too.

    u --weights--> fft --> U  \\                              U K / N --> ifft --> --weights--> y
    k + skip at lag zero --> K > one kernel, in place:       dY conj(K) / N --> du
    dy --weights--> fft --> dY /                             sum over the batch of conj(U) dY / N --> dk

The inverse transform is asked for without its scale, which is a pass of its own. A skip term is a filter of lag zero, so it
is added to the filter. Results of the convolution have the type of its input, the filter's gradient is float32. Bytes of the
kernels between transforms an element of N complex numbers: forward 24, backward 48 and, from kept spectra, 40.

A signal that came from other ranks is read from the pieces in which it came, (B, g, P, l), and its result is written likewise.

B batch, g channels, L context length, P pieces, l = L / P, N complex points.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.convolution_backend import Convolution
from hyena_ds.ops.large import empty
from hyena_ds.ops.sizes import right_angle_points
from hyena_ds.ops.triton.packing import empty_as_it_lies, in_pieces, length_of, pieces_of
from hyena_ds.ops.triton.traffic import Traffic, launch, traffic

_BLOCK = 1024


def convolution_with_skip(skip_g: Tensor) -> Convolution:
    """y = k * u + skip u, and its gradients; `dk` is the filter's, whose first column is the skip's too."""

    def forward_with_spectra(u_BgL: Tensor, k_gL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, K = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g)
        return _signal(product(U, K, torch.empty_like(U)), u_BgL), U, K

    def forward(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
        U, K = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g)
        return _signal(product(U, K, U), u_BgL)

    def backward(dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        U, K, dY = _spectrum(u_BgL), _spectrum(k_gL.unsqueeze(0), skip_g), _spectrum(dy_BgL)
        correlations(U, K, dY, (U if again else None, K, dY))
        y_BgL = _signal(U, dy_BgL) if again else None
        del U
        return _signal(dY, dy_BgL), _filter(K, dy_BgL), y_BgL

    def backward_from_spectra(dy_BgL: Tensor, U: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        dY = _spectrum(dy_BgL)
        correlations(U, K, dY, (None, K, dY))
        return _signal(dY, dy_BgL), _filter(K, dy_BgL)

    return Convolution("fft", forward, backward, forward_with_spectra, backward_from_spectra, takes_pieces=True)


def weighted(x_BgL: Tensor, points: int, first_g: Tensor | None = None) -> Tensor:
    """(B, g, N): x[t] exp(i pi t / 2N), then zeros; x may be in pieces; `first` is added to the first element of each channel."""
    B, g = x_BgL.shape[:2]
    out_BgN = empty((B, g, points), x_BgL.device, torch.complex64)
    launch(
        _weighted_kernel, (triton.cdiv(points, _BLOCK), g, B), x_BgL, lambda: weighted_traffic(x_BgL, out_BgN),
        x_BgL, x_BgL.stride(0), x_BgL.stride(1), *pieces_of(x_BgL), first_g, torch.view_as_real(out_BgN), length_of(x_BgL),
        points, g, 0.5 * math.pi / points, x_BgL.dim() == 4, first_g is not None, _BLOCK,
    )  # fmt: skip
    return out_BgN


def real_part(z_BgN: Tensor, out_BgL: Tensor) -> Tensor:
    """`out`, which may be in pieces: of z[t] exp(-i pi t / 2N) the real part."""
    B, g, points = z_BgN.shape
    L = length_of(out_BgL)
    assert z_BgN.is_contiguous()
    launch(
        _real_part_kernel, (triton.cdiv(L, _BLOCK), g, B), z_BgN, lambda: real_part_traffic(z_BgN, out_BgL),
        torch.view_as_real(z_BgN), out_BgL, out_BgL.stride(0), out_BgL.stride(1), *pieces_of(out_BgL), L, points, g,
        0.5 * math.pi / points, out_BgL.dim() == 4, _BLOCK,
    )  # fmt: skip
    return out_BgL


def product(U_BgN: Tensor, K_1gN: Tensor, out_BgN: Tensor) -> Tensor:
    """U K / N into `out`, which may be U."""
    size, blocks, scale = _flat(U_BgN, K_1gN)
    launch(
        _product_kernel, (blocks, U_BgN.shape[0]), U_BgN, lambda: product_traffic(U_BgN, K_1gN),
        *map(torch.view_as_real, (U_BgN, K_1gN, out_BgN)), size, scale, _BLOCK,
    )  # fmt: skip
    return out_BgN


def correlations(U_BgN: Tensor, K_1gN: Tensor, dY_BgN: Tensor, into: tuple[Tensor | None, Tensor, Tensor]) -> None:
    """U K / N, the sum over the batch of conj(U) dY / N, and dY conj(K) / N; into U, K and dY themselves, if these are given."""
    size, blocks, scale = _flat(U_BgN, K_1gN)
    Y, dK, dU = into
    launch(
        _correlations_kernel, (blocks,), U_BgN, lambda: correlations_traffic(U_BgN, K_1gN, Y is not None),
        *map(torch.view_as_real, (U_BgN, K_1gN, dY_BgN)), None if Y is None else torch.view_as_real(Y),
        torch.view_as_real(dK), torch.view_as_real(dU), size, scale, U_BgN.shape[0], Y is not None, _BLOCK,
    )  # fmt: skip


def weighted_traffic(x: Tensor, out: Tensor) -> Traffic:
    """Bytes of `weighted`."""
    return traffic((x,), (out,))


def real_part_traffic(z: Tensor, out: Tensor) -> Traffic:
    """Bytes of `real_part`, which reads no further than the signal goes."""
    return traffic((z[..., : length_of(out)],), (out,))


def product_traffic(U: Tensor, K: Tensor) -> Traffic:
    """Bytes of `product`."""
    return traffic((U, K), (U,))


def correlations_traffic(U: Tensor, K: Tensor, again: bool) -> Traffic:
    """Bytes of `correlations`."""
    return traffic((U, K, U), (U, K, U if again else None))


def _flat(U_BgN: Tensor, K_1gN: Tensor) -> tuple[int, int, float]:
    """(complex numbers of a sequence, programs for them, 1 / N)."""
    assert U_BgN.is_contiguous() and K_1gN.is_contiguous()
    size = K_1gN.numel()
    return size, triton.cdiv(size, _BLOCK), 1.0 / K_1gN.shape[-1]


def _spectrum(x_BgL: Tensor, first_g: Tensor | None = None) -> Tensor:
    spectrum: Tensor = torch.fft.fft(weighted(x_BgL, right_angle_points(length_of(x_BgL)), first_g))
    return spectrum


def _signal(spectrum_BgN: Tensor, like_BgL: Tensor) -> Tensor:
    """The real part of the transform back, in the form and type of `like`."""
    return real_part(torch.fft.ifft(spectrum_BgN, norm="forward"), empty_as_it_lies(like_BgL))


def _filter(spectrum_1gN: Tensor, like_BgL: Tensor) -> Tensor:
    """(g, L), float32."""
    out_1gL = torch.empty((1, spectrum_1gN.shape[1], length_of(like_BgL)), device=like_BgL.device)
    return real_part(torch.fft.ifft(spectrum_1gN, norm="forward"), out_1gL)[0]


@triton.jit
def _weighted_kernel(
    x, x_B, x_g, x_P, l, first, out, L, N, channels, quarter,
    PIECES: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    value = tl.load(x + b * x_B + g * x_g + in_pieces(t, x_P, l, PIECES), mask=t < L, other=0.0).to(tl.float32)
    if FIRST:
        value += tl.where(t == 0, tl.load(first + g), 0.0)
    turn = t.to(tl.float32) * quarter
    _keep(out + (b * channels + g) * N * 2, t, N, value * tl.cos(turn), value * tl.sin(turn))


@triton.jit
def _real_part_kernel(
    z, y, y_B, y_g, y_P, l, L, N, channels, quarter, PIECES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    real, imaginary = _complex(z + (b * channels + g) * N * 2, t, L)
    turn = t.to(tl.float32) * quarter
    value = real * tl.cos(turn) + imaginary * tl.sin(turn)
    tl.store(y + b * y_B + g * y_g + in_pieces(t, y_P, l, PIECES), value.to(y.dtype.element_ty), mask=t < L)


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
