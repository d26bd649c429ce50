"""The causal long convolution in three passes over memory each way; beside ops/fft_convolution.py.

    u --weights, columns--> [N1, N2] --rows: transform, x K, transform back--> --columns, weights--> y

N >= L complex points in place of 2 L real ones: with u and k weighted by exp(i pi j / (2 N)), a quarter turn at N, what wraps
around comes out imaginary, and the real part is the causal convolution (right-angle convolution; Crandall and Fagin, 1994).
Bailey's split N = N1 N2 transforms N1 points down the columns, turns every point, and transforms N2 along the rows; a program
transforms some columns, or rows, as two products with DFT matrices, whose tables come from float64. Between the passes lie
two float32 planes, real and imaginary. Backward convolves the reversed dy with k and with u, and writes in reverse: a
correlation is a convolution from the other end. The skip is a filter of lag zero, and is added to k as it is read.

Bytes a position and channel, N = L: u 12, k 12, product 24, y 12, so 60 forward; backward 120, and 20 more for y once more.

B batch, g channels, L context length, N points, N1 down a column, N2 along a row, A x B the split of either.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.traffic import Traffic
from hyena_ds.ops.triton.waves import of_part

SHORTEST, LONGEST = 1 << 10, 1 << 21
"""Points of a convolution."""
PRECISION = "ieee"
"""Precision of the products with DFT matrices: ieee, or tf32x3, three products of tensor cores with float32's accuracy nearly."""
_COLUMNS = 8
"""Columns of a program: 32 bytes of each row, a sector of memory."""
_ROWS = 8
_ROWS_BACKWARD = 4
_WARPS = 8


class Points(NamedTuple):
    """How a length is split, and the tables of either side."""

    down: int
    along: int
    tables_down: Tensor
    tables_along: Tensor


class Planes(NamedTuple):
    """Real and imaginary parts, (B, g, N1, N2)."""

    real: Tensor
    imaginary: Tensor


def points_of(length: int) -> int:
    """N, the smallest power of two that fits. Raises ValueError beyond the longest."""
    if length > LONGEST:
        raise ValueError(f"a convolution over {length:,} tokens; this one is made for up to {LONGEST:,}")
    return max(SHORTEST, 1 << (length - 1).bit_length())


def split_of(points: int) -> tuple[int, int]:
    """(N1, N2): columns of up to 1,024 points."""
    bits = points.bit_length() - 1
    down = min(10, (bits + 1) // 2)
    return 1 << down, 1 << (bits - down)


def factors_of(size: int) -> tuple[int, int]:
    """(A, B) of a side: two products where both factors can be 16 or more, else one."""
    bits = size.bit_length() - 1
    return (size, 1) if bits < 8 else (1 << bits // 2, 1 << (bits - bits // 2))


@lru_cache
def _tables(size: int, device: torch.device) -> Tensor:
    """cos and -sin of the DFT matrices of A and of B, and of the turns between, one after the other, float32."""
    A, B = factors_of(size)

    def waves(rows: int, columns: int, whole: int) -> Tensor:
        part = torch.arange(rows).outer(torch.arange(columns)).remainder_(whole).double() * (2.0 * torch.pi / whole)
        return torch.stack((part.cos(), -part.sin())).flatten()

    return torch.cat((waves(A, A, A), waves(B, B, B), waves(A, B, size))).float().to(device)


def causal_convolution(u_BgL: Tensor, k_gL: Tensor, skip_g: Tensor | None = None) -> Tensor:
    """y[t] = sum over s <= t of k[s] u[t - s], with `skip` u[t] added, float32."""
    points = _points(u_BgL)
    u, k = _down(u_BgL, points, False), _down(k_gL.unsqueeze(0), points, False, skip_g)
    _product(u, k, points)
    return _up(u, points, torch.empty(u_BgL.shape, device=u_BgL.device, dtype=torch.float32), False)


def causal_convolution_backward(
    dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool, skip_g: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(du, dk, and y once more if `again`); dk[0] is the skip's gradient too."""
    points = _points(u_BgL)
    dy, u = _down(dy_BgL, points, True), _down(u_BgL, points, False)
    k = _down(k_gL.unsqueeze(0), points, False, skip_g)
    N = points.down * points.along
    B, g, _ = u_BgL.shape
    _rows_backward_kernel[(points.down // _ROWS_BACKWARD, g)](
        *dy, *u, *k, points.tables_along, g, again, B, N, points.down, points.along, *factors_of(points.along),
        _ROWS_BACKWARD, PRECISION, num_warps=_WARPS,
    )  # fmt: skip
    du_BgL, dk_1gL = (torch.empty(x.shape, device=x.device, dtype=torch.float32) for x in (u_BgL, k_gL.unsqueeze(0)))
    _up(dy, points, du_BgL, True)
    _up(k, points, dk_1gL, True)
    return du_BgL, dk_1gL[0], _up(u, points, torch.empty_like(du_BgL), False) if again else None


def convolution_traffic(u_BgL: Tensor, k_gL: Tensor) -> Traffic:
    """Bytes of `causal_convolution`."""
    plane = points_of(u_BgL.shape[-1]) * 4
    batch, g, signals = u_BgL.shape[0], u_BgL.shape[1], (u_BgL.numel() + k_gL.numel()) * 4
    spectra = (batch + 1) * g * 2 * plane
    return Traffic(signals + spectra + batch * g * 2 * plane, spectra + batch * g * 2 * plane + u_BgL.numel() * 4)


def backward_traffic(u_BgL: Tensor, k_gL: Tensor, again: bool) -> Traffic:
    """Bytes of `causal_convolution_backward`."""
    plane = points_of(u_BgL.shape[-1]) * 4
    batch, g = u_BgL.shape[0], u_BgL.shape[1]
    spectra, results = (2 * batch + 1) * g * 2 * plane, ((2 if again else 1) * batch + 1) * g * 2 * plane
    signals = ((2 if again else 1) * u_BgL.numel() + k_gL.numel()) * 4
    return Traffic((2 * u_BgL.numel() + k_gL.numel()) * 4 + spectra + results, spectra + results + signals)


def _points(u_BgL: Tensor) -> Points:
    down, along = split_of(points_of(u_BgL.shape[-1]))
    return Points(down, along, _tables(down, u_BgL.device), _tables(along, u_BgL.device))


def _down(x_BgL: Tensor, points: Points, reverse: bool, skip_g: Tensor | None = None) -> Planes:
    """The weighted signal's transforms down the columns, turned."""
    B, g, L = x_BgL.shape
    assert x_BgL.stride(-1) == 1, "positions of a channel are not side by side"
    shape = (B, g, points.down, points.along)
    planes = Planes(*(torch.empty(shape, device=x_BgL.device, dtype=torch.float32) for _ in range(2)))
    columns = min(_COLUMNS, points.along)
    _down_kernel[(points.along // columns, g, B)](
        x_BgL, x_BgL.stride(0), x_BgL.stride(1), skip_g, *planes, points.tables_down, L, g, reverse,
        skip_g is not None, points.down * points.along, points.down, points.along, *factors_of(points.down), columns,
        PRECISION, num_warps=_WARPS,
    )  # fmt: skip
    return planes


def _product(u: Planes, k: Planes, points: Points) -> None:
    """u k in the place of u, transformed back along the rows."""
    B, g, down, along = u.real.shape
    _rows_kernel[(down // _ROWS, g, B)](
        *u, *k, points.tables_along, g, down * along, down, along, *factors_of(along), _ROWS, PRECISION,
        num_warps=_WARPS,
    )  # fmt: skip


def _up(planes: Planes, points: Points, y_BgL: Tensor, reverse: bool) -> Tensor:
    """The transforms back, of which the real part, weighted, is the signal; written into `y`."""
    B, g, L = y_BgL.shape
    columns = min(_COLUMNS, points.along)
    _up_kernel[(points.along // columns, g, B)](
        *planes, y_BgL, y_BgL.stride(0), y_BgL.stride(1), points.tables_down, L, g, reverse,
        points.down * points.along, points.down, points.along, *factors_of(points.down), columns, PRECISION,
        num_warps=_WARPS,
    )  # fmt: skip
    return y_BgL


@triton.jit
def _matrix(table, real, imaginary, A: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr):
    """The DFT over the first of two dims, of A points; SIGN -1 for its inverse, without the division."""
    at = tl.arange(0, A)[:, None] * A + tl.arange(0, A)[None, :]
    c = tl.load(table + at)
    s = tl.load(table + A * A + at) * SIGN
    out_real = tl.dot(c, real, input_precision=PRECISION)
    out_real = tl.dot(-s, imaginary, out_real, input_precision=PRECISION)
    out_imaginary = tl.dot(c, imaginary, input_precision=PRECISION)
    out_imaginary = tl.dot(s, real, out_imaginary, input_precision=PRECISION)
    return out_real, out_imaginary


@triton.jit
def _transform(
    table, real, imaginary, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, SIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The DFT of A B points down C columns, both in order: over a of a B + b, turned, then over b."""
    real, imaginary = _matrix(
        table, tl.reshape(real, (A, B * C)), tl.reshape(imaginary, (A, B * C)), A, SIGN, PRECISION
    )
    if B > 1:
        turns = table + 2 * A * A + 2 * B * B
        at = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
        c = tl.load(turns + at)[:, :, None]
        s = (tl.load(turns + A * B + at) * SIGN)[:, :, None]
        real, imaginary = tl.reshape(real, (A, B, C)), tl.reshape(imaginary, (A, B, C))
        turned = real * c - imaginary * s
        imaginary = real * s + imaginary * c
        real = tl.reshape(tl.permute(turned, (1, 0, 2)), (B, A * C))
        imaginary = tl.reshape(tl.permute(imaginary, (1, 0, 2)), (B, A * C))
        real, imaginary = _matrix(table + 2 * A * A, real, imaginary, B, SIGN, PRECISION)
    return tl.reshape(real, (A * B, C)), tl.reshape(imaginary, (A * B, C))


@triton.jit
def _down_kernel(
    x, x_B, x_g, skip, out_real, out_imaginary, table, L, g,
    REVERSE: tl.constexpr, SKIP: tl.constexpr, N: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    down = tl.arange(0, N1)[:, None]
    across = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    channel = tl.program_id(1)
    b = tl.program_id(2)
    j = down * N2 + across
    x += b.to(tl.int64) * x_B + channel.to(tl.int64) * x_g
    value = tl.load(x + (L - 1 - j if REVERSE else j), mask=j < L, other=0.0).to(tl.float32)
    if SKIP:
        value += tl.where(j == 0, tl.load(skip + channel), 0.0)
    s, c = of_part(j, 4 * N)
    real, imaginary = _transform(table, value * c, value * s, A, B, C, 1, PRECISION)
    s, c = of_part(down * across, N)
    at = (b * g + channel).to(tl.int64) * N + j
    tl.store(out_real + at, real * c + imaginary * s)
    tl.store(out_imaginary + at, imaginary * c - real * s)


@triton.jit
def _up_kernel(
    in_real, in_imaginary, y, y_B, y_g, table, L, g,
    REVERSE: tl.constexpr, N: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    down = tl.arange(0, N1)[:, None]
    across = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    channel = tl.program_id(1)
    b = tl.program_id(2)
    j = down * N2 + across
    at = (b * g + channel).to(tl.int64) * N + j
    real, imaginary = _transform(table, tl.load(in_real + at), tl.load(in_imaginary + at), A, B, C, -1, PRECISION)
    s, c = of_part(j, 4 * N)
    y += b.to(tl.int64) * y_B + channel.to(tl.int64) * y_g
    tl.store(y + (L - 1 - j if REVERSE else j), real * c + imaginary * s, mask=j < L)


@triton.jit
def _load_row(real, imaginary, at, table, A: tl.constexpr, B: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr):
    return _transform(table, tl.load(real + at), tl.load(imaginary + at), A, B, R, 1, PRECISION)


@triton.jit
def _store_row(
    real, imaginary, at, part, value_real, value_imaginary, table, N: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Back along the rows, turned back, divided by N."""
    value_real, value_imaginary = _transform(table, value_real, value_imaginary, A, B, R, -1, PRECISION)
    s, c = of_part(part, N)
    s, c = s * (1.0 / N), c * (1.0 / N)
    tl.store(real + at, value_real * c - value_imaginary * s)
    tl.store(imaginary + at, value_imaginary * c + value_real * s)


@triton.jit
def _rows_kernel(
    u_real, u_imaginary, k_real, k_imaginary, table, g,
    N: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, A: tl.constexpr, B: tl.constexpr, R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.arange(0, N2)[:, None]
    down = tl.program_id(0) * R + tl.arange(0, R)[None, :]
    channel = tl.program_id(1)
    row = down * N2 + across
    at_k = channel.to(tl.int64) * N + row
    at_u = (tl.program_id(2) * g + channel).to(tl.int64) * N + row
    kr, ki = _load_row(k_real, k_imaginary, at_k, table, A, B, R, PRECISION)
    ur, ui = _load_row(u_real, u_imaginary, at_u, table, A, B, R, PRECISION)
    _store_row(
        u_real, u_imaginary, at_u, down * across, ur * kr - ui * ki, ur * ki + ui * kr, table, N, A, B, R, PRECISION
    )


@triton.jit
def _rows_backward_kernel(
    dy_real, dy_imaginary, u_real, u_imaginary, k_real, k_imaginary, table, g,
    AGAIN: tl.constexpr, BATCH: tl.constexpr, N: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.arange(0, N2)[:, None]
    down = tl.program_id(0) * R + tl.arange(0, R)[None, :]
    channel = tl.program_id(1)
    row = down * N2 + across
    part = down * across
    at_k = channel.to(tl.int64) * N + row
    kr, ki = _load_row(k_real, k_imaginary, at_k, table, A, B, R, PRECISION)
    dkr = tl.zeros((N2, R), tl.float32)
    dki = tl.zeros((N2, R), tl.float32)
    for b in range(BATCH):
        at = (b * g + channel).to(tl.int64) * N + row
        dr, di = _load_row(dy_real, dy_imaginary, at, table, A, B, R, PRECISION)
        ur, ui = _load_row(u_real, u_imaginary, at, table, A, B, R, PRECISION)
        dkr += dr * ur - di * ui
        dki += dr * ui + di * ur
        _store_row(dy_real, dy_imaginary, at, part, dr * kr - di * ki, dr * ki + di * kr, table, N, A, B, R, PRECISION)
        if AGAIN:
            _store_row(
                u_real, u_imaginary, at, part, ur * kr - ui * ki, ur * ki + ui * kr, table, N, A, B, R, PRECISION
            )
    _store_row(k_real, k_imaginary, at_k, part, dkr, dki, table, N, A, B, R, PRECISION)
