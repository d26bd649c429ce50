"""The causal long convolution in passes over columns and rows; beside ops/fft_convolution.py.

    u --weights, columns--> [N1, N2] --rows: transform, x K, transform back--> --columns, weights--> y

N >= L complex points in place of 2 L real ones: with u and k weighted by exp(i pi j / (2 N)), a quarter turn at N, what wraps
around comes out imaginary, and the real part is the causal convolution (right-angle convolution; Crandall and Fagin, 1994).
Bailey's split N = N1 N2 transforms N1 points down the columns, turns every point, and transforms N2 along the rows. A program
holds some columns, or rows, in registers: it transforms over R1 points that a thread has, hands them to other threads
through its own part of the planes, and transforms over R2. Between passes lie two float32 planes, real and imaginary.
Backward convolves the reversed dy with k and with u, and writes in reverse: a correlation is a convolution from the other
end.

Bytes a position and channel, N = L, of a batch of one in float32: down 12, up 12, a row's transform 16, a product of two 24; so
forward 76 (u and k down, K along, u through, up), backward 156, and 36 more for y once more. Signals in bfloat16 take 2 less.

It is right in Triton's interpreter and compiled for sm_90; no card has run it, so it is chosen only where a check at the start
of a run finds it right and fast (ops/convolution_backend.py).

A signal in pieces, (B, g, P, l), as other ranks sent it, is taken down as it lies, and its result is written likewise.

B batch, g channels, L context length, P pieces, l = L / P, N points, N1 down a column, N2 along a row, R1 x R2 the split of
either, C columns or rows of a program.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton.runtime import JITFunction

from hyena_ds.ops.convolution_backend import Convolution
from hyena_ds.ops.triton.long_convolution_kernels import (
    along_kernel,
    down_kernel,
    product_kernel,
    through_kernel,
    up_kernel,
)
from hyena_ds.ops.triton.packing import empty_as_it_lies, length_of, pieces_of
from hyena_ds.ops.triton.traffic import Traffic, launch

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


def causal_convolution(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
    """y[t] = sum over s <= t of k[s] u[t - s], in the type of u, and in pieces that lie as u's if these are some."""
    k = _along(_down(k_gL.unsqueeze(0), False))
    return _up(_through(_down(u_BgL, False), k), empty_as_it_lies(u_BgL), False)


def causal_convolution_backward(
    dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(du in the type of dy, dk in that of k, and y in that of u once more if `again`)."""
    dy, u = _along(_down(dy_BgL, True)), _along(_down(u_BgL, False))
    dk_gL = empty_as_it_lies(k_gL)
    _up(_product(dy, u, _empty_planes(1, *u.real.shape[1:], u_BgL.device)), dk_gL.unsqueeze(0), True)
    k = _along(_down(k_gL.unsqueeze(0), False))
    du_BgL = _up(_product(dy, k, dy), empty_as_it_lies(dy_BgL), True)
    del dy
    return du_BgL, dk_gL, _up(_product(u, k, u), empty_as_it_lies(u_BgL), False) if again else None


FUSED = Convolution(
    "fused",
    causal_convolution,
    causal_convolution_backward,
    shortest=1 << 14,
    longest=LONGEST,
    pieces=4,
    takes_pieces=True,
)
"""Below its shortest length the host, not the card, is the limit."""


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels, on whatever device their tensors are."""
    return not isinstance(down_kernel, JITFunction)


def convolution_traffic(u_BgL: Tensor, k_gL: Tensor) -> Traffic:
    """Bytes of `causal_convolution`; of k's spectrum as if one read served all sequences of a batch.

    What programs hand on through their own part of the planes stays in a cache, and is not counted."""
    B, planes = u_BgL.shape[0], _plane_bytes(u_BgL)
    read = (u_BgL.nbytes + k_gL.nbytes) + (2 * B + 2) * planes
    return Traffic(read, u_BgL.nbytes + (2 * B + 2) * planes)


def backward_traffic(u_BgL: Tensor, k_gL: Tensor, again: bool) -> Traffic:
    """Bytes of `causal_convolution_backward`, likewise; dy is as large as u."""
    B, planes = u_BgL.shape[0], _plane_bytes(u_BgL)
    more = 1 if again else 0
    results = B + 1 + more * B
    read = 2 * u_BgL.nbytes + k_gL.nbytes + (2 * B + 1 + 2 * B + B + 1 + more * (B + 1) + results) * planes
    return Traffic(read, (1 + more) * u_BgL.nbytes + k_gL.nbytes + (2 * (2 * B + 1) + results) * planes)


def _plane_bytes(x_BgL: Tensor) -> int:
    """Bytes of both planes of one sequence."""
    return x_BgL.shape[1] * points_of(length_of(x_BgL)) * 8


def _empty_planes(batch: int, g: int, down: int, along: int, device: torch.device) -> Planes:
    return Planes(*(torch.empty((batch, g, down, along), device=device, dtype=torch.float32) for _ in range(2)))


def _bytes(planes: Planes) -> int:
    return planes.real.nbytes + planes.imaginary.nbytes


def _down(x_BgL: Tensor, reverse: bool) -> Planes:
    """The weighted signal's transforms down the columns, turned."""
    B, g, L = *x_BgL.shape[:2], length_of(x_BgL)
    down, along = split_of(points_of(L))
    planes = _empty_planes(B, g, down, along, x_BgL.device)
    side = side_of(down, min(_COLUMNS, along))
    launch(
        down_kernel, (along // side.together, g, B), x_BgL, lambda: Traffic(x_BgL.nbytes, _bytes(planes)),
        x_BgL, x_BgL.stride(0), x_BgL.stride(1), *pieces_of(x_BgL), *planes, L, g, x_BgL.dim() == 4, reverse, down, along,
        side.first, side.second, side.together, _circle(side.first), _circle(side.second), _quarter(side.first),
        num_warps=side.warps,
    )  # fmt: skip
    return planes


def _up(planes: Planes, y_BgL: Tensor, reverse: bool) -> Tensor:
    """The transforms back, of which the real part, weighted, is the signal; written into `y`. The planes are used up."""
    B, g, L = *y_BgL.shape[:2], length_of(y_BgL)
    down, along = planes.real.shape[2:]
    side = side_of(down, min(_COLUMNS, along))
    launch(
        up_kernel, (along // side.together, g, B), y_BgL, lambda: Traffic(_bytes(planes), y_BgL.nbytes),
        *planes, y_BgL, y_BgL.stride(0), y_BgL.stride(1), *pieces_of(y_BgL), L, g, y_BgL.dim() == 4, reverse, down, along,
        side.first, side.second, side.together, _circle(side.first), _circle(side.second), _quarter(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return y_BgL


def _along(planes: Planes) -> Planes:
    """Transforms along the rows, in place."""
    B, g, down, along = planes.real.shape
    side = side_of(along, min(_ROWS, down))
    launch(
        along_kernel, (down // side.together, g, B), planes.real, lambda: Traffic(_bytes(planes), _bytes(planes)),
        *planes, g, down, along, side.first, side.second, side.together, _circle(side.first), _circle(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return planes


def _through(u: Planes, k: Planes) -> Planes:
    """Along the rows, times the spectrum k, and back, in the place of u."""
    B, g, down, along = u.real.shape
    side = side_of(along, min(_ROWS, down))
    launch(
        through_kernel, (down // side.together, g, B), u.real, lambda: Traffic(_bytes(u) + _bytes(k), _bytes(u)),
        *u, *k, g, down, along, side.first, side.second, side.together, _circle(side.first), _circle(side.second),
        num_warps=side.warps,
    )  # fmt: skip
    return u


def _product(x: Planes, y: Planes, out: Planes) -> Planes:
    """x y of two spectra, back along the rows, into `out`, which may be x: of each sequence, or their sum."""
    B, g, down, along = x.real.shape
    side = side_of(along, min(_ROWS, down))
    results = out.real.shape[0]
    launch(
        product_kernel, (down // side.together, g, results), x.real,
        lambda: Traffic(_bytes(x) + _bytes(y), _bytes(out)),
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
