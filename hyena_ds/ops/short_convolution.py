"""The 3-tap causal depth-wise convolution of a tile, channel-major, and its backward.

    q[t] = w[0] p[t-2] + w[1] p[t-1] + w[2] p[t] + b        p_BCm with its two predecessors (m = n + 2) -> q_BCn

On a CPU three multiply-adds over shifted views are faster than a general convolution; on a device they are nine passes
through memory, and the library's depth-wise convolution is two.

B batch, C channels, n tokens of the tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.ops import place

HALO = 2
"""Tokens of the left neighbour that a token needs: taps - 1."""


def short_convolution(p_BCm: Tensor, weight_C13: Tensor, bias_C: Tensor) -> Tensor:
    """(B, C, n + 2) -> (B, C, n). Weights as in the published `short_filter`, the last tap for the token itself."""
    if place.on_device(p_BCm.device):
        return F.conv1d(p_BCm, weight_C13, bias_C, groups=p_BCm.shape[1])
    w0, w1, w2 = weight_C13.unbind(-1)
    n = p_BCm.shape[-1] - HALO
    q_BCn = torch.mul(p_BCm[..., 2:], w2)
    q_BCn.addcmul_(p_BCm[..., 1 : n + 1], w1).addcmul_(p_BCm[..., :n], w0)
    return q_BCn.add_(bias_C.unsqueeze(-1))


def short_convolution_to_input(dq_BCm: Tensor, weight_C13: Tensor) -> Tensor:
    """Gradient of the inputs: dp[t] = w[2] dq[t] + w[1] dq[t+1] + w[0] dq[t+2]; (B, C, n + 2) -> (B, C, n)."""
    if place.on_device(dq_BCm.device):
        return F.conv1d(dq_BCm, weight_C13.flip(-1), groups=dq_BCm.shape[1])
    w0, w1, w2 = weight_C13.unbind(-1)
    n = dq_BCm.shape[-1] - HALO
    dp_BCn = torch.mul(dq_BCm[..., :n], w2)
    return dp_BCn.addcmul_(dq_BCm[..., 1 : n + 1], w1).addcmul_(dq_BCm[..., 2:], w0)


def short_convolution_to_weight(dq_BCn: Tensor, p_BCm: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight (C, 1, 3) and bias (C): dw[j] = sum over t of dq[t] p[t-2+j]."""
    B, C, n = dq_BCn.shape
    if place.on_device(dq_BCn.device):
        dq_r1n = dq_BCn.flatten(0, 1).unsqueeze(1)
        shifted = (p_BCm[..., j : j + n].flatten(0, 1).unsqueeze(2) for j in range(HALO + 1))
        taps_BCj = torch.cat([torch.bmm(dq_r1n, p_rn1) for p_rn1 in shifted], dim=-1).view(B, C, HALO + 1)
        return taps_BCj.sum(0).unsqueeze(1), dq_BCn.sum((0, 2))
    taps = [torch.mul(dq_BCn, p_BCm[..., j : j + n]).sum((0, 2)) for j in range(HALO + 1)]
    return torch.stack(taps, dim=-1).unsqueeze(1), dq_BCn.sum((0, 2))
