"""Final norm, tied head, next-token loss and all their gradients in one pass; beside ops/cross_entropy.py.

    r --norm--> x_hat --x scale + shift--> x --embedding transposed--> logits --> loss sum, dlogits --> dr
    M = sum of dlogits x_hat, S = sum of dlogits   -->   gradients of embedding, scale and shift

r is read and dr written, 8 D bytes a token in float32, and the targets. Everything else is a function of M (V, D) and S (V):
d embedding = M scale + S shift, d scale = sum over V of embedding M, d shift = S embedding. Products are IEEE float32.

B batch, n tokens, D width, V vocabulary of at most 16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.layer_norm import NORM_EPSILON
from hyena_ds.ops.triton.programs import rows_of, steps_of
from hyena_ds.ops.triton.traffic import Traffic, traffic

MOST_WORDS = 16
_ROWS = 16
_STEPS = 32
_WARPS = 8
_EPSILON = tl.constexpr(NORM_EPSILON)


class LossGradients(NamedTuple):
    """Gradients of the loss sum; the first is of r's shape and type, the others float32."""

    r_BnD: Tensor
    scale_D: Tensor
    shift_D: Tensor
    embedding_VD: Tensor


def cross_entropy(
    r_BnD: Tensor, scale_D: Tensor, shift_D: Tensor, embedding_VD: Tensor, targets_Bn: Tensor, wanted: bool
) -> tuple[Tensor, LossGradients | None]:
    """(loss sum over targets that are not negative, float64 scalar; its gradients if `wanted`). All is contiguous."""
    (B, n, D), V = r_BnD.shape, embedding_VD.shape[0]
    assert V <= MOST_WORDS and r_BnD.is_contiguous() and targets_Bn.is_contiguous()
    tokens, columns = B * n, rows_of(D)[1]
    steps = steps_of(tokens, _ROWS, _STEPS)
    blocks = triton.cdiv(tokens, _ROWS * steps)
    losses = torch.empty((blocks,), device=r_BnD.device, dtype=torch.float32)
    dr_BnD = torch.empty_like(r_BnD) if wanted else None
    M = torch.empty((blocks, MOST_WORDS, D), device=r_BnD.device, dtype=torch.float32) if wanted else None
    S = torch.empty((blocks, MOST_WORDS), device=r_BnD.device, dtype=torch.float32) if wanted else None
    _loss_kernel[(blocks,)](
        r_BnD, scale_D, shift_D, embedding_VD, targets_Bn, losses, dr_BnD, M, S, tokens, V, wanted,
        D, _ROWS, columns, steps, num_warps=_WARPS,
    )  # fmt: skip
    loss = losses.sum(dtype=torch.float64)
    if M is None or S is None or dr_BnD is None:
        return loss, None
    M_VD, S_V = M.sum(0)[:V], S.sum(0)[:V]
    dembedding_VD = (M_VD * scale_D).addr_(S_V, shift_D)
    return loss, LossGradients(dr_BnD, (embedding_VD * M_VD).sum(0), torch.mv(embedding_VD.t(), S_V), dembedding_VD)


def cross_entropy_traffic(r: Tensor, targets: Tensor, dr: Tensor | None) -> Traffic:
    """Bytes of `cross_entropy`, but for the parameters and 64 D bytes of M a program."""
    return traffic((r, targets), (dr,))


@triton.jit
def _loss_kernel(
    r, scale, shift, embedding, targets, losses, dr, M, S, n, V,
    WANTED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)[None, :]
    words = tl.arange(0, 16)
    column_here = columns < D
    scale_1D = tl.load(scale + columns, mask=column_here, other=0.0)
    shift_1D = tl.load(shift + columns, mask=column_here, other=0.0)
    E_VD = tl.load(embedding + words[:, None] * D + columns, mask=(words[:, None] < V) & column_here, other=0.0)
    loss = tl.zeros((ROWS,), tl.float32)
    M_VD = tl.zeros((16, COLUMNS), tl.float32)
    S_V = tl.zeros((16,), tl.float32)
    for step in range(STEPS):
        t = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        here = (t[:, None] < n) & column_here
        at = t[:, None].to(tl.int64) * D + columns
        r_nD = tl.load(r + at, mask=here, other=0.0).to(tl.float32)
        target = tl.load(targets + t, mask=t < n, other=-1)
        mean = tl.sum(r_nD, 1)[:, None] / D
        away = tl.where(here, r_nD - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(away * away, 1)[:, None] / D + _EPSILON)
        x_hat = away * rstd
        x = x_hat * scale_1D + shift_1D
        logits = tl.dot(x, tl.trans(E_VD), input_precision="ieee")
        logits = tl.where(words[None, :] < V, logits, float("-inf"))
        logits -= tl.max(logits, 1)[:, None]
        e = tl.exp(logits)
        total = tl.sum(e, 1)
        hit = target[:, None] == words[None, :]
        scored = target >= 0
        loss += tl.where(scored, tl.log(total) - tl.sum(tl.where(hit, logits, 0.0), 1), 0.0)
        if WANTED:
            dlogits = tl.where(scored[:, None], e / total[:, None] - tl.where(hit, 1.0, 0.0), 0.0)
            S_V += tl.sum(dlogits, 0)
            M_VD = tl.dot(tl.trans(dlogits), x_hat, M_VD, input_precision="ieee")
            dx = tl.dot(dlogits, E_VD, input_precision="ieee") * scale_1D
            along = tl.sum(dx * x_hat, 1)[:, None] / D
            gradient = (dx - tl.sum(dx, 1)[:, None] / D - x_hat * along) * rstd
            tl.store(dr + at, gradient.to(dr.dtype.element_ty), mask=here)
    tl.store(losses + tl.program_id(0), tl.sum(loss))
    if WANTED:
        tl.store(M + (tl.program_id(0) * 16 + words[:, None]) * D + columns, M_VD, mask=column_here)
        tl.store(S + tl.program_id(0) * 16 + words, S_V)
