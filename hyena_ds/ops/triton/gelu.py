"""GELU between the MLP's two products, forward and backward with the bias gradient; beside ops/gelu.py and model/mlp.py.

    a = gelu(h + bias)                          4 I bytes a token in bf16
    dh = da gelu'(h + bias), a once more, and the sum of dh over the tokens           8 I bytes

Arithmetic is float32; tensors are read and written in their own types.

n tokens, I inner width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.programs import steps_of
from hyena_ds.ops.triton.traffic import Traffic, traffic

_COLUMNS = 128
_ROWS = 16
_STEPS = 16
"""Times that a program of the backward goes on to the next rows, before it writes its sums."""
_LINEAR = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi), as in ops/gelu.py
_CUBIC = tl.constexpr(0.044715 * 1.5957691216057308)


def gelu(h_nI: Tensor, bias_I: Tensor | None = None) -> Tensor:
    """gelu(h + bias) in h's type; without a bias, h has it already."""
    n, inner = h_nI.shape
    a_nI = torch.empty_like(h_nI)
    grid = (triton.cdiv(n, _ROWS), triton.cdiv(inner, _COLUMNS))
    _gelu_kernel[grid](h_nI, bias_I, a_nI, n, inner, bias_I is not None, _ROWS, _COLUMNS)
    return a_nI


def gelu_backward(h_nI: Tensor, da_nI: Tensor, bias_I: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(gelu(h + bias), gradient of h, its sum over the tokens in float32)."""
    n, inner = h_nI.shape
    a_nI, dh_nI = torch.empty_like(h_nI), torch.empty_like(h_nI)
    steps = steps_of(n, _ROWS, _STEPS)
    grid = (triton.cdiv(n, _ROWS * steps), triton.cdiv(inner, _COLUMNS))
    sums = torch.empty((grid[0], inner), device=h_nI.device, dtype=torch.float32)
    _gelu_backward_kernel[grid](
        h_nI, bias_I, da_nI, a_nI, dh_nI, sums, n, inner, bias_I is not None, _ROWS, _COLUMNS, steps
    )
    return a_nI, dh_nI, sums.sum(0)


def gelu_traffic(h_nI: Tensor) -> Traffic:
    """Bytes of `gelu`, but for the bias."""
    return traffic((h_nI,), (h_nI,))


def gelu_backward_traffic(h_nI: Tensor) -> Traffic:
    """Bytes of `gelu_backward`, but for the bias and the sums, 4 I bytes every 256 tokens."""
    return traffic((h_nI, h_nI), (h_nI, h_nI))


@triton.jit
def _gelu_kernel(h, bias, a, n, inner, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    here = (rows < n) & (columns < inner)
    at = rows.to(tl.int64) * inner + columns
    x = tl.load(h + at, mask=here, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + columns, mask=columns < inner, other=0.0)
    gate = tl.sigmoid(x * (_LINEAR + _CUBIC * x * x))
    tl.store(a + at, (x * gate).to(a.dtype.element_ty), mask=here)


@triton.jit
def _gelu_backward_kernel(
    h, bias, da, a, dh, sums, n, inner,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    column_here = columns < inner
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        rows = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        here = (rows < n) & column_here
        at = rows.to(tl.int64) * inner + columns
        x = tl.load(h + at, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            x += tl.load(bias + columns, mask=column_here, other=0.0)
        gate = tl.sigmoid(x * (_LINEAR + _CUBIC * x * x))
        slope = gate + x * gate * (1.0 - gate) * (_LINEAR + 3.0 * _CUBIC * x * x)
        dx = tl.load(da + at, mask=here, other=0.0).to(tl.float32) * slope
        tl.store(a + at, (x * gate).to(a.dtype.element_ty), mask=here)
        tl.store(dh + at, dx.to(dh.dtype.element_ty), mask=here)
        total += dx
    at_sums = sums + tl.program_id(0) * inner + columns
    tl.store(at_sums, tl.sum(total, 0)[None, :], mask=column_here)
