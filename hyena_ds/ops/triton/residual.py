"""The residual stream in one pass each way: norm, bias, dropout and addition; embedding; beside ops/layer_norm.py.

    out = r + dropout(y + bias),  x = norm(out)            4 + 2 + 4 + 2 D bytes a token, for bf16 x and y
    dr = dout + norm'(dx),  sums for weight and bias       2 + 4 + 4 + 4 D
    dy = dropout(dr),  its sum                             4 + 2 D
    r = dropout(embedding[id])                             4 D;  the gradient of the embedding 4 D

Statistics are made again in backward from r, which is read anyway. Arithmetic is float32.

B batch, n tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.layer_norm import NORM_EPSILON
from hyena_ds.ops.triton.dropout import SCALARS, Dropped, arguments, kept
from hyena_ds.ops.triton.programs import rows_of, steps_of
from hyena_ds.ops.triton.traffic import Traffic, traffic

_STEPS = 32
_EPSILON = tl.constexpr(NORM_EPSILON)


def norm(r_BnD: Tensor, weight_D: Tensor, bias_D: Tensor, dtype: torch.dtype) -> Tensor:
    """Layer norm of float32 r, in `dtype`."""
    B, n, D = r_BnD.shape
    x_BnD = torch.empty((B, n, D), device=r_BnD.device, dtype=dtype)
    rows, columns = rows_of(D)
    _add_kernel[(triton.cdiv(n, rows), B)](
        r_BnD, _batch(r_BnD), None, 0, None, None, 0, weight_D, bias_D, x_BnD, _batch(x_BnD), n, *arguments(None),
        False, False, False, True, D, rows, columns,
    )  # fmt: skip
    return x_BnD


def add_dropped(
    r_BnD: Tensor, y_BnD: Tensor, bias_D: Tensor | None, dropped: Dropped | None, out_BnD: Tensor
) -> Tensor:
    """r + dropout(y + bias) into `out`, which may be r."""
    B, n, D = r_BnD.shape
    rows, columns = rows_of(D)
    _add_kernel[(triton.cdiv(n, rows), B)](
        r_BnD, _batch(r_BnD), y_BnD, _batch(y_BnD), bias_D, out_BnD, _batch(out_BnD), None, None, None, 0,
        n, *arguments(dropped), True, bias_D is not None, dropped is not None, False, D, rows, columns,
    )  # fmt: skip
    return out_BnD


def add_dropped_norm(
    r_BnD: Tensor,
    y_BnD: Tensor,
    bias_D: Tensor | None,
    dropped: Dropped | None,
    out_BnD: Tensor,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """`add_dropped`, and its norm in `dtype`, returned."""
    B, n, D = r_BnD.shape
    x_BnD = torch.empty((B, n, D), device=r_BnD.device, dtype=dtype)
    rows, columns = rows_of(D)
    _add_kernel[(triton.cdiv(n, rows), B)](
        r_BnD, _batch(r_BnD), y_BnD, _batch(y_BnD), bias_D, out_BnD, _batch(out_BnD), norm_weight_D, norm_bias_D,
        x_BnD, _batch(x_BnD),
        n, *arguments(dropped), True, bias_D is not None, dropped is not None, True, D, rows, columns,
    )  # fmt: skip
    return x_BnD


def norm_backward(
    dx_BnD: Tensor, r_BnD: Tensor, norm_weight_D: Tensor, dout_BnD: Tensor | None, dr_BnD: Tensor
) -> tuple[Tensor, Tensor]:
    """dout + the gradient of r into `dr`, which may be dout; returns gradients of the norm's weight and bias."""
    B, n, D = r_BnD.shape
    rows, columns = rows_of(D)
    steps = steps_of(n, rows, _STEPS)
    blocks = triton.cdiv(n, rows * steps)
    sums = torch.empty((2, B * blocks, D), device=r_BnD.device, dtype=torch.float32)
    _norm_backward_kernel[(blocks, B)](
        dx_BnD, _batch(dx_BnD), r_BnD, _batch(r_BnD), norm_weight_D, dout_BnD, _batch(dout_BnD), dr_BnD, _batch(dr_BnD),
        sums, n, dout_BnD is not None, D, rows, columns, steps,
    )  # fmt: skip
    dweight_D, dbias_D = sums.sum(1)
    return dweight_D, dbias_D


def dropped_gradient(dout_BnD: Tensor, dropped: Dropped | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(dropout of the gradient in `dtype`, its sum over the tokens in float32)."""
    B, n, D = dout_BnD.shape
    dy_BnD = torch.empty((B, n, D), device=dout_BnD.device, dtype=dtype)
    rows, columns = rows_of(D)
    steps = steps_of(n, rows, _STEPS)
    blocks = triton.cdiv(n, rows * steps)
    sums = torch.empty((B * blocks, D), device=dout_BnD.device, dtype=torch.float32)
    _dropped_kernel[(blocks, B)](
        dout_BnD, _batch(dout_BnD), dy_BnD, _batch(dy_BnD), sums, n, *arguments(dropped), dropped is not None,
        D, rows, columns, steps,
    )  # fmt: skip
    return dy_BnD, sums.sum(0)


def embedded(ids_Bn: Tensor, embedding_VD: Tensor, dropped: Dropped | None) -> Tensor:
    """dropout(embedding[ids]), float32. Ids are of any integer type, each below V."""
    (B, n), D = ids_Bn.shape, embedding_VD.shape[1]
    r_BnD = torch.empty((B, n, D), device=ids_Bn.device, dtype=torch.float32)
    rows, columns = rows_of(D)
    _embedded_kernel[(triton.cdiv(n, rows), B)](
        ids_Bn, ids_Bn.stride(0), embedding_VD, r_BnD, _batch(r_BnD), n, *arguments(dropped), dropped is not None,
        D, rows, columns,
    )  # fmt: skip
    return r_BnD


def embedded_backward(ids_Bn: Tensor, dr_BnD: Tensor, dropped: Dropped | None, vocabulary: int) -> Tensor:
    """Gradient of the embedding, (V, D) float32; V is at most 16."""
    B, n, D = dr_BnD.shape
    assert vocabulary <= 16, "an embedding of more rows than a program sums"
    rows, columns = max(16, rows_of(D)[0]), rows_of(D)[1]
    steps = steps_of(n, rows, _STEPS)
    blocks = triton.cdiv(n, rows * steps)
    sums = torch.empty((B * blocks, 16, D), device=dr_BnD.device, dtype=torch.float32)
    _embedded_backward_kernel[(blocks, B)](
        ids_Bn, ids_Bn.stride(0), dr_BnD, _batch(dr_BnD), sums, n, *arguments(dropped), dropped is not None,
        D, rows, columns, steps,
    )  # fmt: skip
    return sums.sum(0)[:vocabulary]


def add_dropped_norm_traffic(r: Tensor, y: Tensor, out: Tensor, x: Tensor | None) -> Traffic:
    """Bytes of `add_dropped_norm`, and without `x` of `add_dropped`, but for the parameters."""
    return traffic((r, y), (out, x))


def norm_backward_traffic(dx: Tensor, r: Tensor, dout: Tensor | None, dr: Tensor) -> Traffic:
    """Bytes of `norm_backward`, but for the parameters and sums, 8 D bytes a program."""
    return traffic((dx, r, dout), (dr,))


def _batch(x_BnD: Tensor | None) -> int:
    """Stride of the batch; tokens must follow each other without gaps."""
    if x_BnD is None:
        return 0
    assert x_BnD.stride(-1) == 1 and x_BnD.stride(1) == x_BnD.shape[2], "tokens do not follow each other"
    return x_BnD.stride(0)


@triton.jit
def _normed(r, here, D: tl.constexpr):
    """(r - mean) rstd of each row, and rstd; what is not here is 0."""
    mean = tl.sum(r, 1)[:, None] / D
    away = tl.where(here, r - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(away * away, 1)[:, None] / D + _EPSILON)
    return away * rstd, rstd


@triton.jit(do_not_specialize=SCALARS)
def _add_kernel(
    r, r_B, y, y_B, bias, out, out_B, norm_weight, norm_bias, x, x_B, n, base, samples, offset, threshold, scale,
    ADD: tl.constexpr, BIAS: tl.constexpr, DROP: tl.constexpr, NORM: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    b = tl.program_id(1).to(tl.int64)
    here = (t < n) & (columns < D)
    at = t.to(tl.int64) * D + columns
    value = tl.load(r + b * r_B + at, mask=here, other=0.0).to(tl.float32)
    if ADD:
        change = tl.load(y + b * y_B + at, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            change += tl.load(bias + columns, mask=columns < D, other=0.0)
        if DROP:
            stays = kept(base, tl.load(samples + b), t + tl.cast(offset, tl.int64), columns, threshold)
            change = tl.where(stays, change * scale, 0.0)
        value += change
        tl.store(out + b * out_B + at, value.to(out.dtype.element_ty), mask=here)
    if NORM:
        x_hat, _ = _normed(tl.where(here, value, 0.0), here, D)
        normed = x_hat * tl.load(norm_weight + columns, mask=columns < D, other=0.0)
        normed += tl.load(norm_bias + columns, mask=columns < D, other=0.0)
        tl.store(x + b * x_B + at, normed.to(x.dtype.element_ty), mask=here)


@triton.jit
def _norm_backward_kernel(
    dx, dx_B, r, r_B, norm_weight, dout, dout_B, dr, dr_B, sums, n,
    ADD: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)[None, :]
    b = tl.program_id(1).to(tl.int64)
    weight = tl.load(norm_weight + columns, mask=columns < D, other=0.0)
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        t = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        here = (t < n) & (columns < D)
        at = t.to(tl.int64) * D + columns
        x_hat, rstd = _normed(tl.load(r + b * r_B + at, mask=here, other=0.0).to(tl.float32), here, D)
        dx_t = tl.load(dx + b * dx_B + at, mask=here, other=0.0).to(tl.float32)
        dweight += dx_t * x_hat
        dbias += dx_t
        dx_t *= weight
        along = tl.sum(dx_t * x_hat, 1)[:, None] / D
        gradient = (dx_t - tl.sum(dx_t, 1)[:, None] / D - x_hat * along) * rstd
        if ADD:
            gradient += tl.load(dout + b * dout_B + at, mask=here, other=0.0).to(tl.float32)
        tl.store(dr + b * dr_B + at, gradient.to(dr.dtype.element_ty), mask=here)
    sums += (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * D + columns
    tl.store(sums, tl.sum(dweight, 0)[None, :], mask=columns < D)
    tl.store(sums + tl.num_programs(1) * tl.num_programs(0) * D, tl.sum(dbias, 0)[None, :], mask=columns < D)


@triton.jit(do_not_specialize=SCALARS)
def _dropped_kernel(
    dout, dout_B, dy, dy_B, sums, n, base, samples, offset, threshold, scale,
    DROP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)[None, :]
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        t = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        here = (t < n) & (columns < D)
        at = t.to(tl.int64) * D + columns
        gradient = tl.load(dout + b * dout_B + at, mask=here, other=0.0).to(tl.float32)
        if DROP:
            stays = kept(base, tl.load(samples + b), t + tl.cast(offset, tl.int64), columns, threshold)
            gradient = tl.where(stays, gradient * scale, 0.0)
        tl.store(dy + b * dy_B + at, gradient.to(dy.dtype.element_ty), mask=here)
        total += gradient
    sums += (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * D + columns
    tl.store(sums, tl.sum(total, 0)[None, :], mask=columns < D)


@triton.jit(do_not_specialize=SCALARS)
def _embedded_kernel(
    ids, ids_B, embedding, r, r_B, n, base, samples, offset, threshold, scale,
    DROP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    b = tl.program_id(1).to(tl.int64)
    here = (t < n) & (columns < D)
    token = tl.load(ids + b * ids_B + t, mask=t < n, other=0).to(tl.int32)
    value = tl.load(embedding + token * D + columns, mask=here, other=0.0)
    if DROP:
        stays = kept(base, tl.load(samples + b), t + tl.cast(offset, tl.int64), columns, threshold)
        value = tl.where(stays, value * scale, 0.0)
    tl.store(r + b * r_B + t.to(tl.int64) * D + columns, value, mask=here)


@triton.jit(do_not_specialize=SCALARS)
def _embedded_backward_kernel(
    ids, ids_B, dr, dr_B, sums, n, base, samples, offset, threshold, scale,
    DROP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)[None, :]
    words = tl.arange(0, 16)[:, None]
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros((16, COLUMNS), tl.float32)
    for step in range(STEPS):
        first = (tl.program_id(0) * STEPS + step) * ROWS
        t = first + tl.arange(0, ROWS)[:, None]
        here = (t < n) & (columns < D)
        gradient = tl.load(dr + b * dr_B + t.to(tl.int64) * D + columns, mask=here, other=0.0).to(tl.float32)
        if DROP:
            stays = kept(base, tl.load(samples + b), t + tl.cast(offset, tl.int64), columns, threshold)
            gradient = tl.where(stays, gradient * scale, 0.0)
        across = first + tl.arange(0, ROWS)[None, :]
        token = tl.load(ids + b * ids_B + across, mask=across < n, other=-1).to(tl.int32)
        total = tl.dot((token == words).to(tl.float32), gradient, total, input_precision="ieee")
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 16 * D + words * D + columns
    tl.store(sums + at, total, mask=columns < D)
