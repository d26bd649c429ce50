"""Short convolution and gates in one pass each way, channel-major; beside ops/short_convolution.py and model/operator.py.

    p --bias, 3 taps--> x0, x1, v                      u = x1 v       z = x0 y        dy = x0 dz
    backward: dq = (dz y, du v, du x1) --3 taps reversed--> dp,  sums for weight and biases

Nothing between p and the results is written: backward computes x0, x1 and v again from p, and a token's dq together with
the two after it. Arithmetic is float32; tensors are read and written in their own types. `p` is the product alone, its
bias is added here; what the tokens before need of it comes apart, so that rows stay aligned. Bytes a token for bf16 p, dz, z and dp and float32 u, y, dy and du, width D: u 10 D, z 8 D, u and dy
16 D, backward 22 D and 2 D for z.

B batch, D width, C = 3 D, n tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.programs import steps_of
from hyena_ds.ops.triton.traffic import Traffic, launch, traffic

_BLOCK = 256
"""Tokens of a program's step. Two a thread: more would be read in vectors, but the shifted ones one by one and far apart."""
_WARPS = 4
_STEPS = 4
"""Steps of a program that writes no sums."""
_STEPS_BACKWARD = 8
_SUMS = 15
"""A channel of x0, x1 and v each sums three taps, the short filter's bias and the projection's."""


class ShortWeights(NamedTuple):
    """float32 parameters: of the projection, and of the short filter."""

    in_bias_C: Tensor
    weight_C13: Tensor
    bias_C: Tensor


class GatesGradient(NamedTuple):
    """Results of `gates_backward`; sums are over these tokens, float32."""

    dp_BCn: Tensor
    z_BDn: Tensor | None
    head_BC2: Tensor | None
    """The gradient at the short filter's output of the first two tokens, float32: `right` of those before them."""
    in_bias_C: Tensor
    weight_C13: Tensor
    bias_C: Tensor


def gates(
    p_BCn: Tensor,
    left_BC2: Tensor | None,
    weights: ShortWeights,
    u_BDn: Tensor | None = None,
    z_BDn: Tensor | None = None,
    y_BDn: Tensor | None = None,
    dy_BDn: Tensor | None = None,
    dz_BDn: Tensor | None = None,
) -> None:
    """Write what there is room for: x1 v into `u`, x0 y into `z`, x0 dz into `dy`. A channel's tokens lie side by side.

    `left` is p of the two tokens before; None at the beginning of a sequence, where the short filter sees zeros. Without `u`
    p may have no more than its first D channels.
    """
    B, _, n = p_BCn.shape
    D = weights.bias_C.shape[0] // 3
    steps = steps_of(n, _BLOCK, _STEPS)
    grid = (triton.cdiv(n, _BLOCK * steps), D, B)
    launch(
        _gates_kernel, grid, p_BCn, lambda: gates_traffic(p_BCn, u_BDn, z_BDn, y_BDn, dy_BDn, dz_BDn),
        p_BCn, *_rows(p_BCn), left_BC2, *_rows(left_BC2), *weights, y_BDn, *_rows(y_BDn), dz_BDn, *_rows(dz_BDn),
        u_BDn, *_rows(u_BDn), z_BDn, *_rows(z_BDn), dy_BDn, *_rows(dy_BDn), n, D,
        left_BC2 is not None, u_BDn is not None, z_BDn is not None, dy_BDn is not None, _BLOCK, steps,
        num_warps=_WARPS,
    )  # fmt: skip


def gates_traffic(
    p_BCn: Tensor, u: Tensor | None, z: Tensor | None, y: Tensor | None, dy: Tensor | None, dz: Tensor | None
) -> Traffic:
    """Bytes of `gates` at a sequence's beginning, but for the parameters; z and dy take x0's rows of p, u the others."""
    D = next(x.shape[1] for x in (u, z, dy) if x is not None)
    return traffic((None if z is dy is None else p_BCn[:, :D], None if u is None else p_BCn[:, D:], y, dz), (u, z, dy))


def gates_backward(
    p_BCn: Tensor,
    left_BC2: Tensor | None,
    weights: ShortWeights,
    dz_BDn: Tensor,
    y_BDn: Tensor,
    du_BDn: Tensor,
    right_BC2: Tensor | None,
    with_z: bool,
    with_head: bool = False,
) -> GatesGradient:
    """Gradients of p, and of the parameters, and z = x0 y `with_z`, and `with_head` what tokens before these need.

    `right` is the gradient at the short filter's output of the two tokens after these; None where there are none.
    """
    B, C, n = p_BCn.shape
    steps = steps_of(n, _BLOCK, _STEPS_BACKWARD)
    blocks = triton.cdiv(n, _BLOCK * steps)
    dp_BCn = torch.empty((B, C, n), device=p_BCn.device, dtype=p_BCn.dtype)
    z_BDn = torch.empty((B, C // 3, n), device=p_BCn.device, dtype=p_BCn.dtype) if with_z else None
    head_BC2 = torch.empty((B, C, 2), device=p_BCn.device, dtype=torch.float32) if with_head else None
    sums = torch.empty((_SUMS, B * blocks, C // 3), device=p_BCn.device, dtype=torch.float32)
    launch(
        _gates_backward_kernel, (blocks, C // 3, B), p_BCn,
        lambda: gates_backward_traffic(p_BCn, dz_BDn, y_BDn, du_BDn, dp_BCn, z_BDn),
        p_BCn, *_rows(p_BCn), left_BC2, *_rows(left_BC2), *weights,
        y_BDn, *_rows(y_BDn), dz_BDn, *_rows(dz_BDn), du_BDn, *_rows(du_BDn), right_BC2, *_rows(right_BC2),
        dp_BCn, *_rows(dp_BCn), z_BDn, *_rows(z_BDn), head_BC2, sums, n, C // 3,
        left_BC2 is not None, right_BC2 is not None, with_z, with_head, _BLOCK, steps,
        num_warps=_WARPS,
    )  # fmt: skip
    total_35D = sums.sum(1).view(3, _SUMS // 3, C // 3)
    dweight = total_35D[:, :3].transpose(1, 2).reshape(C, 1, 3)
    return GatesGradient(dp_BCn, z_BDn, head_BC2, total_35D[:, 4].reshape(C), dweight, total_35D[:, 3].reshape(C))


def gates_backward_traffic(p: Tensor, dz: Tensor, y: Tensor, du: Tensor, dp: Tensor, z: Tensor | None) -> Traffic:
    """Bytes of `gates_backward`, but for parameters, neighbours and the sums, 60 bytes a program."""
    return traffic((p, dz, y, du), (dp, z))


def _rows(x: Tensor | None) -> tuple[int, int]:
    """Strides of batch and channel."""
    if x is None:
        return 0, 0
    assert x.stride(-1) == 1 or x.shape[-1] == 1, "tokens of a channel are not side by side"
    return x.stride(0), x.stride(1)


@triton.jit
def _column(p_row, left_row, at, n, in_bias, LEFT: tl.constexpr):
    """p with its bias at a token, the neighbour's before the first, 0 outside."""
    inside = (at >= 0) & (at < n)
    value = tl.load(p_row + at, mask=inside, other=0.0).to(tl.float32)
    if LEFT:
        before = (at < 0) & (at >= -2)
        value += tl.load(left_row + 2 + at, mask=before, other=0.0).to(tl.float32)
        inside = inside | before
    return tl.where(inside, value + in_bias, 0.0)


@triton.jit
def _short(p_row, left_row, t, n, in_bias, weight, bias, c, LEFT: tl.constexpr):
    """The short filter's output of channel c."""
    b = tl.load(in_bias + c)
    q = _column(p_row, left_row, t, n, b, LEFT) * tl.load(weight + 3 * c + 2)
    q += _column(p_row, left_row, t - 1, n, b, LEFT) * tl.load(weight + 3 * c + 1)
    q += _column(p_row, left_row, t - 2, n, b, LEFT) * tl.load(weight + 3 * c)
    return q + tl.load(bias + c)


@triton.jit
def _gates_kernel(
    p, p_B, p_C, left, left_B, left_C, in_bias, weight, bias, y, y_B, y_D, dz, dz_B, dz_D,
    u, u_B, u_D, z, z_B, z_D, dy, dy_B, dy_D, n, D,
    LEFT: tl.constexpr, U: tl.constexpr, Z: tl.constexpr, DY: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    row = d.to(tl.int64)
    p0 = p + b * p_B + row * p_C
    p1 = p + b * p_B + (row + D) * p_C
    p2 = p + b * p_B + (row + 2 * D) * p_C
    left0, left1, left2 = left, left, left
    if LEFT:
        left0 = left + b * left_B + row * left_C
        left1 = left0 + D * left_C
        left2 = left1 + D * left_C
    for step in range(STEPS):
        t = (tl.program_id(0) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        here = t < n
        if U:
            x1 = _short(p1, left1, t, n, in_bias, weight, bias, d + D, LEFT)
            v = _short(p2, left2, t, n, in_bias, weight, bias, d + 2 * D, LEFT)
            tl.store(u + b * u_B + row * u_D + t, (x1 * v).to(u.dtype.element_ty), mask=here)
        if Z or DY:
            x0 = _short(p0, left0, t, n, in_bias, weight, bias, d, LEFT)
            if Z:
                y_t = tl.load(y + b * y_B + row * y_D + t, mask=here, other=0.0).to(tl.float32)
                tl.store(z + b * z_B + row * z_D + t, (x0 * y_t).to(z.dtype.element_ty), mask=here)
            if DY:
                dz_t = tl.load(dz + b * dz_B + row * dz_D + t, mask=here, other=0.0).to(tl.float32)
                tl.store(dy + b * dy_B + row * dy_D + t, (x0 * dz_t).to(dy.dtype.element_ty), mask=here)


@triton.jit
def _after(right_row, t, n):
    """The neighbour's gradient of a token past the end; 0 elsewhere."""
    return tl.load(right_row + (t - n), mask=(t >= n) & (t < n + 2), other=0.0).to(tl.float32)


@triton.jit
def _gates_backward_kernel(
    p, p_B, p_C, left, left_B, left_C, in_bias, weight, bias, y, y_B, y_D, dz, dz_B, dz_D, du, du_B, du_D,
    right, right_B, right_C, dp, dp_B, dp_C, z, z_B, z_D, head, sums, n, D,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, WITH_Z: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    row = d.to(tl.int64)
    p0 = p + b * p_B + row * p_C
    p1 = p + b * p_B + (row + D) * p_C
    p2 = p + b * p_B + (row + 2 * D) * p_C
    left0, left1, left2 = left, left, left
    if LEFT:
        left0 = left + b * left_B + row * left_C
        left1 = left0 + D * left_C
        left2 = left1 + D * left_C
    y += b * y_B + row * y_D
    dz += b * dz_B + row * dz_D
    du += b * du_B + row * du_D
    dp += b * dp_B
    head0, head1, head2 = head, head, head
    if HEAD:
        head0 = head + (b * 3 * D + row) * 2
        head1 = head0 + 2 * D
        head2 = head1 + 2 * D
    in0, in1, in2 = tl.load(in_bias + d), tl.load(in_bias + d + D), tl.load(in_bias + d + 2 * D)
    w00, w01, w02 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)
    weight += 3 * D
    w10, w11, w12 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)
    weight += 3 * D
    w20, w21, w22 = tl.load(weight + 3 * d), tl.load(weight + 3 * d + 1), tl.load(weight + 3 * d + 2)
    b0, b1, b2 = tl.load(bias + d), tl.load(bias + d + D), tl.load(bias + d + 2 * D)

    nothing = tl.zeros((BLOCK,), tl.float32)
    s00, s01, s02, s03, s04 = nothing, nothing, nothing, nothing, nothing
    s10, s11, s12, s13, s14 = nothing, nothing, nothing, nothing, nothing
    s20, s21, s22, s23, s24 = nothing, nothing, nothing, nothing, nothing
    for step in range(STEPS):
        t = (tl.program_id(0) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        here = t < n
        # Rows x1 and v at t - 2 ... t + 2 give their gates at t, t + 1 and t + 2; the letters count upwards from t - 2.
        a1, a2 = _column(p1, left1, t - 2, n, in1, LEFT), _column(p2, left2, t - 2, n, in2, LEFT)
        c1, c2 = _column(p1, left1, t - 1, n, in1, LEFT), _column(p2, left2, t - 1, n, in2, LEFT)
        e1, e2 = _column(p1, left1, t, n, in1, LEFT), _column(p2, left2, t, n, in2, LEFT)
        f1, f2 = _column(p1, left1, t + 1, n, in1, LEFT), _column(p2, left2, t + 1, n, in2, LEFT)
        g1, g2 = _column(p1, left1, t + 2, n, in1, LEFT), _column(p2, left2, t + 2, n, in2, LEFT)
        y_t = tl.load(y + t, mask=here, other=0.0).to(tl.float32)
        dz_t = tl.load(dz + t, mask=here, other=0.0).to(tl.float32)
        du_t = tl.load(du + t, mask=here, other=0.0).to(tl.float32)
        dq0 = dz_t * y_t
        dq1 = du_t * (e2 * w22 + c2 * w21 + a2 * w20 + b2)
        dq2 = du_t * (e1 * w12 + c1 * w11 + a1 * w10 + b1)
        if HEAD:
            tl.store(head0 + t, dq0, mask=t == 0)
            tl.store(head1 + t, dq1, mask=t == 0)
            tl.store(head2 + t, dq2, mask=t == 0)
        a0, c0 = _column(p0, left0, t - 2, n, in0, LEFT), _column(p0, left0, t - 1, n, in0, LEFT)
        e0 = _column(p0, left0, t, n, in0, LEFT)
        if WITH_Z:
            x0 = e0 * w02 + c0 * w01 + a0 * w00 + b0
            tl.store(z + b * z_B + row * z_D + t, (x0 * y_t).to(z.dtype.element_ty), mask=here)
        s00 += dq0 * a0
        s01 += dq0 * c0
        s02 += dq0 * e0
        s03 += dq0
        s10 += dq1 * a1
        s11 += dq1 * c1
        s12 += dq1 * e1
        s13 += dq1
        s20 += dq2 * a2
        s21 += dq2 * c2
        s22 += dq2 * e2
        s23 += dq2
        dp0, dp1, dp2 = dq0 * w02, dq1 * w12, dq2 * w22
        # The gradients of the next token, and of the one after it.
        y_t = tl.load(y + t + 1, mask=t + 1 < n, other=0.0).to(tl.float32)
        dz_t = tl.load(dz + t + 1, mask=t + 1 < n, other=0.0).to(tl.float32)
        du_t = tl.load(du + t + 1, mask=t + 1 < n, other=0.0).to(tl.float32)
        dq0 = dz_t * y_t
        dq1 = du_t * (f2 * w22 + e2 * w21 + c2 * w20 + b2)
        dq2 = du_t * (f1 * w12 + e1 * w11 + c1 * w10 + b1)
        if RIGHT:
            right_row = right + b * right_B + row * right_C
            dq0 += _after(right_row, t + 1, n)
            dq1 += _after(right_row + D * right_C, t + 1, n)
            dq2 += _after(right_row + 2 * D * right_C, t + 1, n)
        if HEAD:
            tl.store(head0 + t + 1, dq0, mask=t == 0)
            tl.store(head1 + t + 1, dq1, mask=t == 0)
            tl.store(head2 + t + 1, dq2, mask=t == 0)
        dp0 += dq0 * w01
        dp1 += dq1 * w11
        dp2 += dq2 * w21
        y_t = tl.load(y + t + 2, mask=t + 2 < n, other=0.0).to(tl.float32)
        dz_t = tl.load(dz + t + 2, mask=t + 2 < n, other=0.0).to(tl.float32)
        du_t = tl.load(du + t + 2, mask=t + 2 < n, other=0.0).to(tl.float32)
        dq0 = dz_t * y_t
        dq1 = du_t * (g2 * w22 + f2 * w21 + e2 * w20 + b2)
        dq2 = du_t * (g1 * w12 + f1 * w11 + e1 * w10 + b1)
        if RIGHT:
            right_row = right + b * right_B + row * right_C
            dq0 += _after(right_row, t + 2, n)
            dq1 += _after(right_row + D * right_C, t + 2, n)
            dq2 += _after(right_row + 2 * D * right_C, t + 2, n)
        dp0 += dq0 * w00
        dp1 += dq1 * w10
        dp2 += dq2 * w20
        tl.store(dp + row * dp_C + t, dp0.to(dp.dtype.element_ty), mask=here)
        tl.store(dp + (row + D) * dp_C + t, dp1.to(dp.dtype.element_ty), mask=here)
        tl.store(dp + (row + 2 * D) * dp_C + t, dp2.to(dp.dtype.element_ty), mask=here)
        s04 += tl.where(here, dp0, 0.0)
        s14 += tl.where(here, dp1, 0.0)
        s24 += tl.where(here, dp2, 0.0)
    sums += (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * D + d
    next_sum = tl.num_programs(2) * tl.num_programs(0) * D
    tl.store(sums, tl.sum(s00))
    tl.store(sums + next_sum, tl.sum(s01))
    tl.store(sums + 2 * next_sum, tl.sum(s02))
    tl.store(sums + 3 * next_sum, tl.sum(s03))
    tl.store(sums + 4 * next_sum, tl.sum(s04))
    tl.store(sums + 5 * next_sum, tl.sum(s10))
    tl.store(sums + 6 * next_sum, tl.sum(s11))
    tl.store(sums + 7 * next_sum, tl.sum(s12))
    tl.store(sums + 8 * next_sum, tl.sum(s13))
    tl.store(sums + 9 * next_sum, tl.sum(s14))
    tl.store(sums + 10 * next_sum, tl.sum(s20))
    tl.store(sums + 11 * next_sum, tl.sum(s21))
    tl.store(sums + 12 * next_sum, tl.sum(s22))
    tl.store(sums + 13 * next_sum, tl.sum(s23))
    tl.store(sums + 14 * next_sum, tl.sum(s24))
