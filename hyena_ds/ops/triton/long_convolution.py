"""The causal long convolution in passes over columns and rows; beside ops/fft_convolution.py.

    u --weights, columns--> [N1, N2] --rows: transform, x K, transform back--> --columns, weights--> y

N >= L complex points in place of 2 L real ones: with u and k weighted by exp(i pi j / (2 N)), a quarter turn at N, what wraps
around comes out imaginary, and the real part is the causal convolution (right-angle convolution; Crandall and Fagin, 1994).
Bailey's split N = N1 N2 transforms N1 points down the columns, turns every point, and transforms N2 along the rows. A program
holds some columns, or rows, in registers: it transforms over R1 points that a thread has, hands them to other threads
through its own part of the planes, and transforms over R2. Between passes lie two float32 planes, real and imaginary.
Backward convolves the reversed dy with k and with u, and writes in reverse: a correlation is a convolution from the other
end. The skip is a filter of lag zero, and is added to k as it is read.

Bytes a position and channel, N = L, of a batch of one: down 12, up 12, a row's transform 16, a product of two 24; so forward
76 (u and k down, K along, u through, up), backward 156, and 36 more for y once more.

B batch, g channels, L context length, N points, N1 down a column, N2 along a row, R1 x R2 the split of either, C columns or
rows of a program.
"""

# ruff: noqa: RUF005  (Triton's tuples grow by addition only)

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.traffic import Traffic
from hyena_ds.ops.triton.waves import of_part

SHORTEST, LONGEST = 1 << 10, 1 << 21
"""Points of a convolution."""
_COLUMNS = 8
"""Columns of a program: 32 bytes of each row, a sector of memory."""
_ROWS = 8
_WARPS = 8
"""At most; a program has no more than its points fill."""


class Side(NamedTuple):
    """How programs transform the N1 or the N2 points of a side."""

    size: int
    first: int
    second: int
    together: int
    warps: int


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


def side_of(size: int, together: int) -> Side:
    """R1 is a power of two at or below the root."""
    first = 1 << (size.bit_length() - 1) // 2
    second = size // first
    return Side(size, first, second, together, max(1, min(_WARPS, first * together // 32)))


def causal_convolution(u_BgL: Tensor, k_gL: Tensor, skip_g: Tensor | None = None) -> Tensor:
    """y[t] = sum over s <= t of k[s] u[t - s], with `skip` u[t] added, float32."""
    k = _along(_down(k_gL.unsqueeze(0), False, skip_g))
    u = _through(_down(u_BgL, False), k)
    return _up(u, torch.empty(u_BgL.shape, device=u_BgL.device, dtype=torch.float32), False)


def causal_convolution_backward(
    dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool, skip_g: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(du, dk, and y once more if `again`); dk[0] is the skip's gradient too."""
    dy, u = _along(_down(dy_BgL, True)), _along(_down(u_BgL, False))
    dk_gL = torch.empty(k_gL.shape, device=k_gL.device, dtype=torch.float32)
    _up(_product(dy, u, _empty_planes(1, *u.real.shape[1:], u_BgL.device)), dk_gL.unsqueeze(0), True)
    k = _along(_down(k_gL.unsqueeze(0), False, skip_g))
    du_BgL = torch.empty(u_BgL.shape, device=u_BgL.device, dtype=torch.float32)
    _up(_product(dy, k, dy), du_BgL, True)
    return du_BgL, dk_gL, _up(_product(u, k, u), torch.empty_like(du_BgL), False) if again else None


def convolution_traffic(u_BgL: Tensor, k_gL: Tensor) -> Traffic:
    """Bytes of `causal_convolution`; of k's spectrum as if one read served all sequences of a batch.

    What programs hand on through their own part of the planes stays in a cache, and is not counted."""
    B, g, L = u_BgL.shape
    signal, planes = g * L * 4, g * points_of(L) * 8
    return Traffic((B + 1) * signal + (2 * B + 2) * planes, B * signal + (2 * B + 2) * planes)


def backward_traffic(u_BgL: Tensor, k_gL: Tensor, again: bool) -> Traffic:
    """Bytes of `causal_convolution_backward`, likewise."""
    B, g, L = u_BgL.shape
    signal, planes = g * L * 4, g * points_of(L) * 8
    more = 1 if again else 0
    results = B + 1 + more * B
    read = (2 * B + 1) * (signal + planes) + (2 * B + B + 1 + more * (B + 1) + results) * planes
    return Traffic(read, results * signal + (2 * (2 * B + 1) + results) * planes)


def _empty_planes(batch: int, g: int, down: int, along: int, device: torch.device) -> Planes:
    return Planes(*(torch.empty((batch, g, down, along), device=device, dtype=torch.float32) for _ in range(2)))


def _down(x_BgL: Tensor, reverse: bool, skip_g: Tensor | None = None) -> Planes:
    """The weighted signal's transforms down the columns, turned."""
    B, g, L = x_BgL.shape
    assert x_BgL.stride(-1) == 1, "positions of a channel are not side by side"
    down, along = split_of(points_of(L))
    planes = _empty_planes(B, g, down, along, x_BgL.device)
    side = side_of(down, min(_COLUMNS, along))
    _down_kernel[(along // side.together, g, B)](
        x_BgL, x_BgL.stride(0), x_BgL.stride(1), skip_g, *planes, L, g, reverse, skip_g is not None, down, along,
        side.first, side.second, side.together, _circle(side.first), _circle(side.second), _quarter(side.first),
        num_warps=side.warps,
    )  # fmt: skip
    return planes


def _up(planes: Planes, y_BgL: Tensor, reverse: bool) -> Tensor:
    """The transforms back, of which the real part, weighted, is the signal; written into `y`. The planes are used up."""
    B, g, L = y_BgL.shape
    down, along = planes.real.shape[2:]
    side = side_of(down, min(_COLUMNS, along))
    _up_kernel[(along // side.together, g, B)](
        *planes, y_BgL, y_BgL.stride(0), y_BgL.stride(1), L, g, reverse, down, along,
        side.first, side.second, side.together, _circle(side.first), _circle(side.second), _quarter(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return y_BgL


def _along(planes: Planes) -> Planes:
    """Transforms along the rows, in place."""
    B, g, down, along = planes.real.shape
    side = side_of(along, min(_ROWS, down))
    _along_kernel[(down // side.together, g, B)](
        *planes, g, down, along, side.first, side.second, side.together, _circle(side.first), _circle(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return planes


def _through(u: Planes, k: Planes) -> Planes:
    """Along the rows, times the spectrum k, and back, in the place of u."""
    B, g, down, along = u.real.shape
    side = side_of(along, min(_ROWS, down))
    _through_kernel[(down // side.together, g, B)](
        *u, *k, g, down, along, side.first, side.second, side.together, _circle(side.first), _circle(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return u


def _product(x: Planes, y: Planes, out: Planes) -> Planes:
    """x y of two spectra, back along the rows, into `out`, which may be x: of each sequence, or their sum."""
    B, g, down, along = x.real.shape
    side = side_of(along, min(_ROWS, down))
    results = out.real.shape[0]
    _product_kernel[(down // side.together, g, results)](
        *x, *y, *out, g, B // results, y.real.shape[0] == 1, down, along, side.first, side.second, side.together,
        _circle(side.first), _circle(side.second), num_warps=side.warps,
    )  # fmt: skip
    return out


def _circle(points: int) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...], int]:
    """Cosines and sines of half a circle, where a transform in place leaves each point, and its stages."""
    bits = points.bit_length() - 1
    angles = [2.0 * math.pi * k / points for k in range(max(1, points // 2))]
    places = tuple(int(f"{k:0{bits}b}"[::-1], 2) if bits else 0 for k in range(points))
    return tuple(map(math.cos, angles)), tuple(map(math.sin, angles)), places, bits


def _quarter(points: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Cosines and sines of a quarter of a circle in so many steps."""
    angles = [0.5 * math.pi * k / points for k in range(points)]
    return tuple(map(math.cos, angles)), tuple(map(math.sin, angles))


@triton.jit
def _turned_difference(a_re, a_im, b_re, b_im, W: tl.constexpr, CIRCLE: tl.constexpr, SIGN: tl.constexpr):
    """(a - b) times point W of the circle."""
    re = a_re - b_re
    im = a_im - b_im
    if W == 0:
        return re, im
    else:
        return (
            re * CIRCLE[0][W] - im * (CIRCLE[1][W] * SIGN),
            re * (CIRCLE[1][W] * SIGN) + im * CIRCLE[0][W],
        )


@triton.jit
def _butterflies(re, im, R: tl.constexpr, STAGES: tl.constexpr, CIRCLE: tl.constexpr, SIGN: tl.constexpr):
    """The DFT over a thread's R points, in order; radix 2, decimated in frequency.

    No number has a name here: the interpreter makes a tensor of what is given one.
    """
    for stage in tl.static_range(STAGES):
        new_re = ()
        new_im = ()
        for i in tl.static_range(R):
            if (i // (R >> (stage + 1))) % 2 == 0:
                new_re = new_re + (re[i] + re[i + (R >> (stage + 1))],)
                new_im = new_im + (im[i] + im[i + (R >> (stage + 1))],)
            else:
                d_re, d_im = _turned_difference(
                    re[i - (R >> (stage + 1))], im[i - (R >> (stage + 1))], re[i], im[i],
                    (i % (R >> (stage + 1))) << stage, CIRCLE, SIGN,
                )  # fmt: skip
                new_re = new_re + (d_re,)
                new_im = new_im + (d_im,)
        re = new_re
        im = new_im
    in_order_re = ()
    in_order_im = ()
    for k in tl.static_range(R):
        in_order_re = in_order_re + (re[CIRCLE[2][k]],)
        in_order_im = in_order_im + (im[CIRCLE[2][k]],)
    return in_order_re, in_order_im


@triton.jit
def _powers(c, s, R: tl.constexpr):
    """(c + i s)^k for k < R; each by as few products as it has bits."""
    re = (c * 0.0 + 1.0, c)
    im = (s * 0.0, s)
    for k in tl.static_range(2, R):
        new_re = re[k // 2] * re[k - k // 2] - im[k // 2] * im[k - k // 2]
        new_im = re[k // 2] * im[k - k // 2] + im[k // 2] * re[k - k // 2]
        re = re + (new_re,)
        im = im + (new_im,)
    return re, im


@triton.jit
def _transform(
    re, im, real, imaginary, b, at_b, ka, at_a, ROW: tl.constexpr,
    R1: tl.constexpr, R2: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """The DFT of points a R2 + b, a thread's over a, to points ka + R1 kb, a thread's over kb.

    Points go to other threads through the planes, rows of ROW elements from `at_b` and `at_a` on. The program's own part
    of them is overwritten.
    """
    re, im = _butterflies(re, im, R1, CIRCLE1[3], CIRCLE1, SIGN)
    s, c = of_part(b, R1 * R2)
    turn_re, turn_im = _powers(c, s * SIGN, R1)
    tl.debug_barrier()
    for k in tl.static_range(R1):
        at = at_b + (k * R2 + b) * ROW
        tl.store(real + at, re[k] * turn_re[k] - im[k] * turn_im[k])
        tl.store(imaginary + at, re[k] * turn_im[k] + im[k] * turn_re[k])
    tl.debug_barrier()
    re = ()
    im = ()
    for k in tl.static_range(R2):
        at = at_a + (ka * R2 + k) * ROW
        re = re + (tl.load(real + at),)
        im = im + (tl.load(imaginary + at),)
    tl.debug_barrier()
    return _butterflies(re, im, R2, CIRCLE2[3], CIRCLE2, SIGN)


@triton.jit
def _store_turned(
    re, im, real, imaginary, at_a, ka, line, ROW: tl.constexpr,
    N: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, SIGN: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Write points ka + R1 kb of column, or row, `line`, turned by their product of N."""
    s, c = of_part(line * ka, N)
    c, s = c * SCALE, s * SCALE * SIGN
    step_s, step_c = of_part(line * R1, N)
    step_re, step_im = _powers(step_c, step_s * SIGN, R2)
    for k in tl.static_range(R2):
        turn_re = c * step_re[k] - s * step_im[k]
        turn_im = c * step_im[k] + s * step_re[k]
        at = at_a + (ka + R1 * k) * ROW
        tl.store(real + at, re[k] * turn_re - im[k] * turn_im)
        tl.store(imaginary + at, re[k] * turn_im + im[k] * turn_re)


@triton.jit
def _down_kernel(
    x, x_B, x_g, skip, out_real, out_imaginary, L, g,
    REVERSE: tl.constexpr, SKIP: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
    C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before // C
    column = tl.program_id(0) * C + before % C
    channel = tl.program_id(1)
    x += tl.program_id(2).to(tl.int64) * x_B + channel.to(tl.int64) * x_g
    s, c = of_part(b * N2 + column, 4 * N1 * N2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        j = (a * R2 + b) * N2 + column
        value = tl.load(x + (L - 1 - j if REVERSE else j), mask=j < L, other=0.0).to(tl.float32)
        if SKIP:
            value += tl.where(j == 0, tl.load(skip + channel), 0.0)
        re = re + (value * (c * QUARTER[0][a] - s * QUARTER[1][a]),)
        im = im + (value * (c * QUARTER[1][a] + s * QUARTER[0][a]),)
    start = (tl.program_id(2) * g + channel).to(tl.int64) * (N1 * N2)
    out_real += start
    out_imaginary += start
    ka = after // C
    line = tl.program_id(0) * C + after % C
    re, im = _transform(
        re, im, out_real, out_imaginary, b, column, ka, line, N2, R1, R2, CIRCLE1, CIRCLE2, -1
    )  # fmt: skip
    _store_turned(re, im, out_real, out_imaginary, line, ka, line, N2, N1 * N2, R1, R2, -1, 1.0)


@triton.jit
def _up_kernel(
    real, imaginary, y, y_B, y_g, L, g,
    REVERSE: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
    C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before // C
    column = tl.program_id(0) * C + before % C
    channel = tl.program_id(1)
    start = (tl.program_id(2) * g + channel).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re = ()
    im = ()
    for a in tl.static_range(R1):
        at = (a * R2 + b) * N2 + column
        re = re + (tl.load(real + at),)
        im = im + (tl.load(imaginary + at),)
    ka = after // C
    line = tl.program_id(0) * C + after % C
    re, im = _transform(re, im, real, imaginary, b, column, ka, line, N2, R1, R2, CIRCLE1, CIRCLE2, 1)
    s, c = of_part(ka * N2 + line, 4 * N1 * N2)
    y += tl.program_id(2).to(tl.int64) * y_B + channel.to(tl.int64) * y_g
    for k in tl.static_range(R2):
        j = (ka + R1 * k) * N2 + line
        value = re[k] * (c * QUARTER[0][k] - s * QUARTER[1][k]) + im[k] * (c * QUARTER[1][k] + s * QUARTER[0][k])
        tl.store(y + (L - 1 - j if REVERSE else j), value, mask=j < L)


@triton.jit
def _along_kernel(
    real, imaginary, g,
    N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr,
    CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    at_b = (tl.program_id(0) * C + before // R2) * N2
    ka = after % R1
    at_a = (tl.program_id(0) * C + after // R1) * N2
    start = (tl.program_id(2) * g + tl.program_id(1)).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re = ()
    im = ()
    for a in tl.static_range(R1):
        re = re + (tl.load(real + at_b + a * R2 + b),)
        im = im + (tl.load(imaginary + at_b + a * R2 + b),)
    re, im = _transform(re, im, real, imaginary, b, at_b, ka, at_a, 1, R1, R2, CIRCLE1, CIRCLE2, -1)
    for k in tl.static_range(R2):
        tl.store(real + at_a + ka + R1 * k, re[k])
        tl.store(imaginary + at_a + ka + R1 * k, im[k])


@triton.jit
def _through_kernel(
    real, imaginary, k_real, k_imaginary, g,
    N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr,
    CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    row_b = tl.program_id(0) * C + before // R2
    ka = after % R1
    row_a = tl.program_id(0) * C + after // R1
    start = (tl.program_id(2) * g + tl.program_id(1)).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    k_start = tl.program_id(1).to(tl.int64) * (N1 * N2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        re = re + (tl.load(real + row_b * N2 + a * R2 + b),)
        im = im + (tl.load(imaginary + row_b * N2 + a * R2 + b),)
    re, im = _transform(re, im, real, imaginary, b, row_b * N2, ka, row_a * N2, 1, R1, R2, CIRCLE1, CIRCLE2, -1)
    out_re = ()
    out_im = ()
    for k in tl.static_range(R2):
        at = k_start + row_a * N2 + ka + R1 * k
        kr = tl.load(k_real + at)
        ki = tl.load(k_imaginary + at)
        out_re = out_re + (re[k] * kr - im[k] * ki,)
        out_im = out_im + (re[k] * ki + im[k] * kr,)
    # Points ka + R1 kb are a' R2' + b' with R1 and R2 exchanged: nothing moves before the way back.
    re, im = _transform(
        out_re, out_im, real, imaginary, ka, row_a * N2, b, row_b * N2, 1, R2, R1, CIRCLE2, CIRCLE1, 1
    )  # fmt: skip
    _store_turned(re, im, real, imaginary, row_b * N2, b, row_b, 1, N1 * N2, R2, R1, 1, 1.0 / (N1 * N2))


@triton.jit
def _product_kernel(
    x_real, x_imaginary, y_real, y_imaginary, real, imaginary, g,
    TERMS: tl.constexpr, SHARED: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    at_b = (tl.program_id(0) * C + before // R2) * N2
    ka = after % R1
    row_a = tl.program_id(0) * C + after // R1
    channel = tl.program_id(1)
    sequence = tl.program_id(2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        sum_re = tl.zeros((R2 * C,), tl.float32)
        sum_im = tl.zeros((R2 * C,), tl.float32)
        for term in tl.static_range(TERMS):
            at_x = ((sequence + term) * g + channel).to(tl.int64) * (N1 * N2) + at_b + a * R2 + b
            at_y = channel.to(tl.int64) * (N1 * N2) + at_b + a * R2 + b if SHARED else at_x
            xr, xi = tl.load(x_real + at_x), tl.load(x_imaginary + at_x)
            yr, yi = tl.load(y_real + at_y), tl.load(y_imaginary + at_y)
            sum_re += xr * yr - xi * yi
            sum_im += xr * yi + xi * yr
        re = re + (sum_re,)
        im = im + (sum_im,)
    start = (sequence * g + channel).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re, im = _transform(re, im, real, imaginary, b, at_b, ka, row_a * N2, 1, R1, R2, CIRCLE1, CIRCLE2, 1)
    _store_turned(re, im, real, imaginary, row_a * N2, ka, row_a, 1, N1 * N2, R1, R2, 1, 1.0 / (N1 * N2))
