"""The MLP's half-block: r <- r + dropout(down(gelu(up(norm(r))))), in tiles of tokens that stay in cache.

Forward and backward are plain functions, which Block (block.py) joins into one autograd function.

B batch, l local length, D width, I inner width, n tokens of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyena_ds.config.policy import Policy
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.gelu import gelu, gelu_with_slope
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.layer_norm import layer_norm, layer_norm_backward
from hyena_ds.ops.products import add_product
from hyena_ds.ops.tiles import tiles


class MLPWeights(NamedTuple):
    """Parameters of the half-block."""

    norm_weight: Tensor
    norm_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor


class MLP(nn.Module):
    """Parameters of two projections with a tanh-approximated GELU between them."""

    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.up = nn.Linear(width, inner_width)
        self.down = nn.Linear(inner_width, width)


def mlp_forward(
    r_BlD: Tensor, weights: MLPWeights, run: ForwardPass, layer: int, dropout: float, policy: Policy
) -> tuple[Tensor, Tensor | None]:
    """(the residual after the half-block, the MLP before its GELU if `policy` keeps it, in the compute dtype)."""
    dtype = run.compute_dtype
    B, l, _ = r_BlD.shape
    inner = weights.up_bias.numel()
    up, down = _rounded(weights, dtype)
    out_BlD = empty_like(r_BlD)
    kept_BlI = empty((B, l, inner), r_BlD.device, dtype) if policy.keep_inner else None
    for tile in tiles(B, l, inner, r_BlD.device):
        here = (tile.rows, slice(tile.first, tile.last))
        r_BnD = r_BlD[here]
        x_BnD = layer_norm(r_BnD, weights.norm_weight, weights.norm_bias).x
        h_nI = torch.addmm(up.bias, x_BnD.flatten(0, 1).to(dtype), up.weight.t())
        if kept_BlI is not None:
            kept_BlI[here] = h_nI.view(*r_BnD.shape[:2], inner)
        y_nD = torch.addmm(down.bias, gelu(h_nI.float()).to(dtype), down.weight.t()).float()
        torch.add(r_BnD, run.drop(y_nD.view(r_BnD.shape), tile, layer, dropout), out=out_BlD[here])
    return out_BlD, kept_BlI


def mlp_backward(
    dout_BlD: Tensor,
    r_BlD: Tensor,
    weights: MLPWeights,
    run: ForwardPass,
    layer: int,
    dropout: float,
    kept_BlI: Tensor | None,
) -> tuple[Tensor, MLPWeights]:
    """(gradient of r, gradients of the parameters)."""
    dtype = run.compute_dtype
    B, l, _ = r_BlD.shape
    inner = weights.up_bias.numel()
    up, down = _rounded(weights, dtype)
    gradients = MLPWeights(*(torch.zeros_like(weight) for weight in weights))
    dr_BlD = empty_like(r_BlD)
    for tile in tiles(B, l, inner, r_BlD.device):
        here = (tile.rows, slice(tile.first, tile.last))
        r_BnD = r_BlD[here]
        normed = layer_norm(r_BnD, weights.norm_weight, weights.norm_bias)
        x_nD = normed.x.flatten(0, 1).to(dtype)
        kept_nI = None if kept_BlI is None else kept_BlI[here].flatten(0, 1)
        h_nI = torch.addmm(up.bias, x_nD, up.weight.t()) if kept_nI is None else kept_nI
        dy_nD = run.drop(dout_BlD[here], tile, layer, dropout).flatten(0, 1)
        a_nI, slope_nI = gelu_with_slope(h_nI.float())
        gradients.down_bias.add_(dy_nD.sum(0))
        dy_nD = dy_nD.to(dtype)
        add_product(gradients.down_weight, dy_nD.t().unsqueeze(0), a_nI.to(dtype).unsqueeze(0))
        dh_nI = slope_nI.mul_(torch.mm(dy_nD, down.weight))
        gradients.up_bias.add_(dh_nI.sum(0))
        dh_nI = dh_nI.to(dtype)
        add_product(gradients.up_weight, dh_nI.t().unsqueeze(0), x_nD.unsqueeze(0))
        dx_BnD = torch.mm(dh_nI, up.weight).float().view(r_BnD.shape)
        dr, dweight, dbias = layer_norm_backward(dx_BnD, r_BnD, normed, weights.norm_weight, weights.norm_bias)
        gradients.norm_weight.add_(dweight)
        gradients.norm_bias.add_(dbias)
        torch.add(dout_BlD[here], dr, out=dr_BlD[here])
    return dr_BlD, gradients


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor


def _rounded(weights: MLPWeights, dtype: torch.dtype) -> tuple[_Linear, _Linear]:
    """Up and down projection in the compute dtype."""
    return (
        _Linear(weights.up_weight.to(dtype), weights.up_bias.to(dtype)),
        _Linear(weights.down_weight.to(dtype), weights.down_bias.to(dtype)),
    )
