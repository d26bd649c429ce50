"""Matrix products of a tile: token-major to channel-major and back without a transpose, in a chosen precision.

A weight and its operand have one dtype, the compute dtype; results and sums are float32. On a device a product of bfloat16
operands is written as the float32 sum that it is; on a CPU it is rounded first (a tile is a few hundred tokens there).

B batch, n tokens of the tile, C and D channels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Code of ours chooses its own types: autograd runs backward without autocast, so recomputing would not repeat forward."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@lru_cache
def writes_float32(device: torch.device) -> bool:
    """Whether products of bfloat16 on `device` can be written in float32, which torch does from 2.8 on, on CUDA."""
    a = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    try:
        sums = torch.addmm(a.float(), a, a, out_dtype=torch.float32)  # type: ignore[call-overload, unused-ignore]
    except (TypeError, RuntimeError):  # NotImplementedError among them
        return False
    return sums.dtype == torch.float32


def to_channels(weight_CD: Tensor, x_BnD: Tensor, out_BCn: Tensor | None = None) -> Tensor:
    """(B, n, D) -> (B, C, n), every row one output channel; into a float32 `out` if there is one."""
    if x_BnD.shape[0] == 1:
        if out_BCn is not None and weight_CD.dtype == out_BCn.dtype:
            torch.mm(weight_CD, x_BnD[0].t(), out=out_BCn[0])
            return out_BCn
        if out_BCn is not None and writes_float32(out_BCn.device):
            torch.mm(weight_CD, x_BnD[0].t(), out_dtype=out_BCn.dtype, out=out_BCn[0])  # type: ignore[call-overload, unused-ignore]
            return out_BCn
        product = _float32_mm(weight_CD, x_BnD[0].t()).unsqueeze(0)
    else:
        product = _float32_bmm(weight_CD.expand(x_BnD.shape[0], -1, -1), x_BnD.mT)
    return product.float() if out_BCn is None else out_BCn.copy_(product)


def to_tokens(x_BCn: Tensor, weight_CD: Tensor) -> Tensor:
    """(B, C, n) -> (B, n, D), contiguous."""
    if x_BCn.shape[0] == 1:
        return _float32_mm(x_BCn[0].t(), weight_CD).unsqueeze(0).float()
    return _float32_bmm(x_BCn.mT, weight_CD.expand(x_BCn.shape[0], -1, -1)).float()


def add_product(total_CD: Tensor, a_BCn: Tensor, b_BnD: Tensor) -> None:
    """total += the sum over the batch of a b. `total` is float32 whatever the operands are.

    A tile of a device is 131,072 tokens: its sum rounded to bfloat16 would be off by 2e-3.
    """
    for a_Cn, b_nD in zip(a_BCn, b_BnD, strict=True):
        if a_Cn.dtype == total_CD.dtype:
            total_CD.addmm_(a_Cn, b_nD)
        elif a_Cn.device.type == "cpu":
            total_CD.add_(torch.mm(a_Cn, b_nD))
        elif writes_float32(a_Cn.device):
            torch.addmm(total_CD, a_Cn, b_nD, out_dtype=total_CD.dtype, out=total_CD)  # type: ignore[call-overload, unused-ignore]
        else:
            total_CD.addmm_(a_Cn.float(), b_nD.float())


def _float32_mm(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float32 or not writes_float32(a.device):
        return torch.mm(a, b)
    product: Tensor = torch.mm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload, unused-ignore]
    return product


def _float32_bmm(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float32 or not writes_float32(a.device):
        return torch.bmm(a, b)
    product: Tensor = torch.bmm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload, unused-ignore]
    return product
