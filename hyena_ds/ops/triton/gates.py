"""Short convolution and gates in one pass each way, channel-major; beside ops/short_convolution.py and model/operator.py.

    p --bias, 3 taps--> x0, x1, v                      u = x1 v       z = x0 y        dy = x0 dz
    backward: dq = (dz y, du v, du x1) --3 taps reversed--> dp,  sums for weight and biases

Nothing between p and the results is written: backward computes x0, x1 and v again from p, and a token's dq together with
the two after it. Arithmetic is float32; tensors are read and written in their own types. `p` is the product alone: its
bias is added here. Bytes a token for bf16 p, dz, z and dp and float32 u, y, dy and du, width D: u 10 D, z 8 D, u and dy
16 D, backward 22 D and 2 D for z.

B batch, D width, C = 3 D, n tokens, m = n + 2 with the two tokens before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.short_convolution import HALO
from hyena_ds.ops.triton.traffic import Traffic, traffic

_BLOCK = 1024
_SUMS = 15
"""Of each of x0, x1 and v: three taps, the short filter's bias and the projection's."""


class ShortWeights(NamedTuple):
    """float32 parameters: of the projection, and of the short filter."""

    in_bias_C: Tensor
    weight_C13: Tensor
    bias_C: Tensor


class Gated(NamedTuple):
    """Results of `gates`; None where nothing asked for it."""

    u_BDn: Tensor | None = None
    z_BDn: Tensor | None = None
    dy_BDn: Tensor | None = None


class GatesGradient(NamedTuple):
    """Results of `gates_backward`; sums are over these tokens, float32."""

    dp_BCn: Tensor
    z_BDn: Tensor | None
    in_bias_C: Tensor
    weight_C13: Tensor
    bias_C: Tensor


def gates(
    p_BCm: Tensor,
    weights: ShortWeights,
    first: bool,
    u_BDn: Tensor | None = None,
    z_BDn: Tensor | None = None,
    y_BDn: Tensor | None = None,
    dy_BDn: Tensor | None = None,
    dz_BDn: Tensor | None = None,
) -> Gated:
    """Write what there is room for: u = x1 v into `u`, x0 y into `z`, x0 dz into `dy`. Rows are contiguous.

    `first` says that these are a sequence's first tokens: before them the short filter sees zeros.
    """
    B, C, m = p_BCm.shape
    n = m - HALO
    grid = (triton.cdiv(n, _BLOCK), C // 3, B)
    _gates_kernel[grid](
        p_BCm, *_rows(p_BCm), *weights, y_BDn, *_rows(y_BDn), dz_BDn, *_rows(dz_BDn),
        u_BDn, *_rows(u_BDn), z_BDn, *_rows(z_BDn), dy_BDn, *_rows(dy_BDn),
        n, HALO if first else 0, C // 3,
        u_BDn is not None, z_BDn is not None, dy_BDn is not None, _BLOCK,
    )  # fmt: skip
    return Gated(u_BDn, z_BDn, dy_BDn)


def gates_traffic(
    p_BCm: Tensor, u: Tensor | None, z: Tensor | None, y: Tensor | None, dy: Tensor | None, dz: Tensor | None
) -> Traffic:
    """Bytes of `gates`, but for the parameters; x0's rows of p are read for z and dy, the others for u."""
    x0, x1_v = p_BCm.chunk(3, 1)[0], p_BCm[:, p_BCm.shape[1] // 3 :]
    return traffic((None if z is dy is None else x0, None if u is None else x1_v, y, dz), (u, z, dy))


def gates_backward(
    p_BCm: Tensor,
    weights: ShortWeights,
    first: bool,
    dz_BDn: Tensor,
    y_BDn: Tensor,
    du_BDn: Tensor,
    right_BC2: Tensor,
    with_z: bool,
) -> GatesGradient:
    """Gradients of p and of the parameters; `right` is the gradient at the short filter's output two tokens further on."""
    B, C, m = p_BCm.shape
    n = m - HALO
    blocks = triton.cdiv(n, _BLOCK)
    dp_BCn = torch.empty((B, C, n), device=p_BCm.device, dtype=p_BCm.dtype)
    z_BDn = torch.empty((B, C // 3, n), device=p_BCm.device, dtype=p_BCm.dtype) if with_z else None
    sums = torch.empty((_SUMS, B * blocks, C // 3), device=p_BCm.device, dtype=torch.float32)
    _gates_backward_kernel[(blocks, C // 3, B)](
        p_BCm, *_rows(p_BCm), *weights, y_BDn, *_rows(y_BDn), dz_BDn, *_rows(dz_BDn), du_BDn, *_rows(du_BDn),
        right_BC2, *right_BC2.stride(), dp_BCn, *_rows(dp_BCn), z_BDn, *_rows(z_BDn), sums,
        n, HALO if first else 0, C // 3, with_z, _BLOCK,
    )  # fmt: skip
    total_35D = sums.sum(1).view(3, _SUMS // 3, C // 3)
    dweight = total_35D[:, :3].transpose(1, 2).reshape(C, 1, 3)
    return GatesGradient(dp_BCn, z_BDn, total_35D[:, 4].reshape(C), dweight, total_35D[:, 3].reshape(C))


def gates_backward_traffic(p: Tensor, dz: Tensor, y: Tensor, du: Tensor, dp: Tensor, z: Tensor | None) -> Traffic:
    """Bytes of `gates_backward`, but for parameters, `right` and the sums, 60 bytes a block and channel."""
    return traffic((p, dz, y, du), (dp, z))


def _rows(x: Tensor | None) -> tuple[int, int]:
    """Strides of batch and channel; tokens must be next to each other."""
    if x is None:
        return 0, 0
    assert x.stride(-1) == 1 or x.shape[-1] == 1, "tokens of a channel are not next to each other"
    return x.stride(0), x.stride(1)


@triton.jit
def _column(p_row, at, m, zeros, in_bias):
    """p with its bias at a column, 0 outside the m columns and in the first `zeros` of them."""
    inside = (at >= zeros) & (at < m)
    return tl.where(inside, tl.load(p_row + at, mask=inside, other=0.0).to(tl.float32) + in_bias, 0.0)


@triton.jit
def _short(p_row, at, m, zeros, in_bias, w0, w1, w2, bias):
    """The short filter's output of the token whose own column is `at` + 2."""
    q = _column(p_row, at + 2, m, zeros, in_bias) * w2
    q += _column(p_row, at + 1, m, zeros, in_bias) * w1
    q += _column(p_row, at, m, zeros, in_bias) * w0
    return q + bias


@triton.jit
def _gates_kernel(
    p, p_B, p_C, in_bias, weight, bias, y, y_B, y_D, dz, dz_B, dz_D,
    u, u_B, u_D, z, z_B, z_D, dy, dy_B, dy_D,
    n, zeros, D, U: tl.constexpr, Z: tl.constexpr, DY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    here = t < n
    m = n + 2
    p += b * p_B
    if U:
        c = d + D
        x1 = _short(
            p + c.to(tl.int64) * p_C, t, m, zeros, tl.load(in_bias + c),
            tl.load(weight + 3 * c), tl.load(weight + 3 * c + 1), tl.load(weight + 3 * c + 2), tl.load(bias + c),
        )  # fmt: skip
        c = d + 2 * D
        v = _short(
            p + c.to(tl.int64) * p_C, t, m, zeros, tl.load(in_bias + c),
            tl.load(weight + 3 * c), tl.load(weight + 3 * c + 1), tl.load(weight + 3 * c + 2), tl.load(bias + c),
        )  # fmt: skip
        tl.store(u + b * u_B + d.to(tl.int64) * u_D + t, (x1 * v).to(u.dtype.element_ty), mask=here)
    if Z or DY:
        x0 = _short(
            p + d.to(tl.int64) * p_C, t, m, zeros, tl.load(in_bias + d),
            tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2), tl.load(bias + d),
        )  # fmt: skip
        if Z:
            y_t = tl.load(y + b * y_B + d.to(tl.int64) * y_D + t, mask=here, other=0.0).to(tl.float32)
            tl.store(z + b * z_B + d.to(tl.int64) * z_D + t, (x0 * y_t).to(z.dtype.element_ty), mask=here)
        if DY:
            dz_t = tl.load(dz + b * dz_B + d.to(tl.int64) * dz_D + t, mask=here, other=0.0).to(tl.float32)
            tl.store(dy + b * dy_B + d.to(tl.int64) * dy_D + t, (x0 * dz_t).to(dy.dtype.element_ty), mask=here)


@triton.jit
def _after(right_row, right_2, t, n):
    """The neighbour's gradient of a token past the end; 0 elsewhere."""
    past = (t >= n) & (t < n + 2)
    return tl.load(right_row + (t - n) * right_2, mask=past, other=0.0).to(tl.float32)


@triton.jit
def _gates_backward_kernel(
    p, p_B, p_C, in_bias, weight, bias, y, y_B, y_D, dz, dz_B, dz_D, du, du_B, du_D,
    right, right_B, right_C, right_2, dp, dp_B, dp_C, z, z_B, z_D, sums,
    n, zeros, D, WITH_Z: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    here = t < n
    m = n + 2
    row = d.to(tl.int64)
    p0 = p + b * p_B + row * p_C
    p1 = p0 + D * p_C
    p2 = p1 + D * p_C
    y += b * y_B + row * y_D
    dz += b * dz_B + row * dz_D
    du += b * du_B + row * du_D
    right += b * right_B + row * right_C
    in0, in1, in2 = tl.load(in_bias + d), tl.load(in_bias + d + D), tl.load(in_bias + d + 2 * D)
    s0, s1, s2 = tl.load(bias + d), tl.load(bias + d + D), tl.load(bias + d + 2 * D)
    w00, w01, w02 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)
    weight += 3 * D
    w10, w11, w12 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)
    weight += 3 * D
    w20, w21, w22 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)

    dp0 = tl.zeros((BLOCK,), tl.float32)
    dp1 = tl.zeros((BLOCK,), tl.float32)
    dp2 = tl.zeros((BLOCK,), tl.float32)
    at_sums = sums + (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * D + d
    step = tl.num_programs(2) * tl.num_programs(0) * D
    for ahead in tl.static_range(3):
        # The gradient at the short filter's output, of the token `ahead` of each.
        s = t + ahead
        inside = s < n
        x1 = _short(p1, s, m, zeros, in1, w10, w11, w12, s1)
        v = _short(p2, s, m, zeros, in2, w20, w21, w22, s2)
        y_s = tl.load(y + s, mask=inside, other=0.0).to(tl.float32)
        dz_s = tl.load(dz + s, mask=inside, other=0.0).to(tl.float32)
        du_s = tl.load(du + s, mask=inside, other=0.0).to(tl.float32)
        dq0, dq1, dq2 = dz_s * y_s, du_s * v, du_s * x1
        if ahead > 0:
            dq0 += _after(right, right_2, s, n)
            dq1 += _after(right + D * right_C, right_2, s, n)
            dq2 += _after(right + 2 * D * right_C, right_2, s, n)
        dp0 += dq0 * (w02 if ahead == 0 else (w01 if ahead == 1 else w00))
        dp1 += dq1 * (w12 if ahead == 0 else (w11 if ahead == 1 else w10))
        dp2 += dq2 * (w22 if ahead == 0 else (w21 if ahead == 1 else w20))
        if ahead == 0:
            if WITH_Z:
                x0 = _short(p0, t, m, zeros, in0, w00, w01, w02, s0)
                tl.store(z + b * z_B + row * z_D + t, (x0 * y_s).to(z.dtype.element_ty), mask=here)
            for tap in tl.static_range(3):
                tl.store(at_sums + tap * step, tl.sum(dq0 * _column(p0, t + tap, m, zeros, in0)))
                tl.store(at_sums + (5 + tap) * step, tl.sum(dq1 * _column(p1, t + tap, m, zeros, in1)))
                tl.store(at_sums + (10 + tap) * step, tl.sum(dq2 * _column(p2, t + tap, m, zeros, in2)))
            tl.store(at_sums + 3 * step, tl.sum(dq0))
            tl.store(at_sums + 8 * step, tl.sum(dq1))
            tl.store(at_sums + 13 * step, tl.sum(dq2))
    dp += b * dp_B + row * dp_C + t
    tl.store(dp, dp0.to(dp.dtype.element_ty), mask=here)
    tl.store(dp + D * dp_C, dp1.to(dp.dtype.element_ty), mask=here)
    tl.store(dp + 2 * D * dp_C, dp2.to(dp.dtype.element_ty), mask=here)
    tl.store(at_sums + 4 * step, tl.sum(tl.where(here, dp0, 0.0)))
    tl.store(at_sums + 9 * step, tl.sum(tl.where(here, dp1, 0.0)))
    tl.store(at_sums + 14 * step, tl.sum(tl.where(here, dp2, 0.0)))
