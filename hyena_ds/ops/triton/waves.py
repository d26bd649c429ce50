"""Sines and cosines in float32 without the library's slow path, whose table would cost every thread a stack."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def of_quarters(k, r):
    """(sin, cos) of k quarter turns and r, |r| <= pi / 4: the polynomials of Cephes' sinf and cosf."""
    z = r * r
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    k = k.to(tl.int32)
    odd = (k & 1) == 1
    first, second = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    return tl.where((k & 2) == 2, -first, first), tl.where(((k + 1) & 2) == 2, -second, second)


@triton.jit
def of_angle(x):
    """(sin x, cos x) for |x| below some thousand: pi / 2 is taken off in three parts, whose products are exact."""
    k = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - k * 1.5703125) - k * 4.837512969970703125e-4) - k * 7.54978995489188216e-8
    return of_quarters(k, r)


@triton.jit
def of_part(part, whole: tl.constexpr):
    """(sin, cos) of `part` / `whole` of a turn: integers of 31 bits, `whole` a power of two from 4 on."""
    k = (part + whole // 8) // (whole // 4)
    rest = (part - k * (whole // 4)).to(tl.float32)
    return of_quarters(k, rest * (6.283185307179586 / whole))
