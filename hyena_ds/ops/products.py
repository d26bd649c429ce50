"""Matrix products of a tile: token-major to channel-major and back without a transpose, in a chosen precision.

A weight and its operand have one dtype, the compute dtype; results and sums are float32.

B batch, n tokens of the tile, C and D channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Code of ours chooses its own types: autograd runs backward without autocast, so recomputing would not repeat forward."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_channels(weight_CD: Tensor, x_BnD: Tensor, out_BCn: Tensor | None = None) -> Tensor:
    """(B, n, D) -> (B, C, n), every row one output channel; into a float32 `out` if there is one."""
    if x_BnD.shape[0] == 1:
        if out_BCn is not None and weight_CD.dtype == out_BCn.dtype:
            torch.mm(weight_CD, x_BnD[0].t(), out=out_BCn[0])
            return out_BCn
        product = torch.mm(weight_CD, x_BnD[0].t()).unsqueeze(0)
    else:
        product = torch.bmm(weight_CD.expand(x_BnD.shape[0], -1, -1), x_BnD.mT)
    return product.float() if out_BCn is None else out_BCn.copy_(product)


def to_tokens(x_BCn: Tensor, weight_CD: Tensor) -> Tensor:
    """(B, C, n) -> (B, n, D), contiguous."""
    if x_BCn.shape[0] == 1:
        return torch.mm(x_BCn[0].t(), weight_CD).unsqueeze(0).float()
    return torch.bmm(x_BCn.mT, weight_CD.expand(x_BCn.shape[0], -1, -1)).float()


def add_product(total_CD: Tensor, a_BCn: Tensor, b_BnD: Tensor) -> None:
    """total += the sum over the batch of a b. `total` is float32 whatever the operands are."""
    for a_Cn, b_nD in zip(a_BCn, b_BnD, strict=True):
        if a_Cn.dtype == total_CD.dtype:
            total_CD.addmm_(a_Cn, b_nD)
        else:
            total_CD.add_(torch.mm(a_Cn, b_nD))
