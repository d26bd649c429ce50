"""The MLP's half-block: r <- r + dropout(down(gelu(up(norm(r))))), in tiles of tokens that stay in cache.

Forward and backward are plain functions, which Block (block.py) joins into one autograd function.

B batch, l local length, D width, I inner width, n tokens of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops import place
from hyena_ds.ops.gelu import gelu_and_backward, gelu_of
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.layer_norm import layer_norm, layer_norm_backward
from hyena_ds.ops.products import add_product, add_to_tokens
from hyena_ds.ops.sizes import AT_WORK_IN_MLP
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
    r_BlD: Tensor, weights: MLPWeights, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """(the residual after the half-block, the MLP before its GELU if the policy keeps it, in the compute dtype)."""
    dtype = call.compute_dtype
    B, l, D = r_BlD.shape
    inner = weights.up_bias.numel()
    rounded = MLPWeights(*(weight.to(dtype) for weight in weights))
    out_BlD = empty_like(r_BlD)
    kept_BlI = empty((B, l, inner), r_BlD.device, dtype) if call.policy.keep_inner else None
    for tile in tiles(B, l, inner * call.pieces(r_BlD.device, AT_WORK_IN_MLP), r_BlD.device):
        r_BnD = r_BlD[tile.here]
        x_BnD = layer_norm(r_BnD, weights.norm_weight, weights.norm_bias).x
        h_nI = torch.addmm(rounded.up_bias, x_BnD.flatten(0, 1).to(dtype), rounded.up_weight.t())
        if kept_BlI is not None:
            kept_BlI[tile.here] = h_nI.view(*r_BnD.shape[:2], inner)
        a_nI = gelu_of(h_nI)
        if place.on_device(r_BlD.device) and not call.drops(dropout):
            out_BnD = torch.add(r_BnD, weights.down_bias, out=out_BlD[tile.here])
            add_to_tokens(out_BnD.view(1, -1, D), a_nI.t().unsqueeze(0), rounded.down_weight.t())
            continue
        y_nD = torch.addmm(rounded.down_bias, a_nI, rounded.down_weight.t()).float()
        torch.add(r_BnD, call.drop(y_nD.view(r_BnD.shape), tile, layer, dropout), out=out_BlD[tile.here])
    return out_BlD, kept_BlI


def mlp_backward(
    dout_BlD: Tensor,
    r_BlD: Tensor,
    weights: MLPWeights,
    call: ForwardPass,
    layer: int,
    dropout: float,
    kept_BlI: Tensor | None,
) -> tuple[Tensor, MLPWeights]:
    """(gradient of r, gradients of the parameters)."""
    dtype = call.compute_dtype
    B, l, _ = r_BlD.shape
    inner = weights.up_bias.numel()
    rounded = MLPWeights(*(weight.to(dtype) for weight in weights))
    gradients = MLPWeights(*(torch.zeros_like(weight) for weight in weights))
    # On a device the gradient of r overwrites that of the output, but where that is an expanded tensor.
    overwritten = place.on_device(r_BlD.device) and dout_BlD.is_contiguous()
    dr_BlD = dout_BlD if overwritten else empty_like(r_BlD)
    for tile in tiles(B, l, inner * call.pieces(r_BlD.device, AT_WORK_IN_MLP), r_BlD.device):
        r_BnD = r_BlD[tile.here]
        normed = layer_norm(r_BnD, weights.norm_weight, weights.norm_bias)
        x_nD = normed.x.flatten(0, 1).to(dtype)
        kept_nI = None if kept_BlI is None else kept_BlI[tile.here].flatten(0, 1)
        h_nI = torch.addmm(rounded.up_bias, x_nD, rounded.up_weight.t()) if kept_nI is None else kept_nI
        dy_nD = call.drop(dout_BlD[tile.here], tile, layer, dropout).flatten(0, 1)
        a_nI, to_inner = gelu_and_backward(h_nI)
        gradients.down_bias.add_(dy_nD.sum(0))
        dy_nD = dy_nD.to(dtype)
        add_product(gradients.down_weight, dy_nD.t().unsqueeze(0), a_nI.unsqueeze(0))
        del a_nI
        dh_nI = to_inner(torch.mm(dy_nD, rounded.down_weight))
        del h_nI, kept_nI, to_inner, dy_nD
        gradients.up_bias.add_(dh_nI.sum(0, dtype=torch.float32))
        dh_nI = dh_nI.to(dtype)
        add_product(gradients.up_weight, dh_nI.t().unsqueeze(0), x_nD.unsqueeze(0))
        dx_BnD = torch.mm(dh_nI, rounded.up_weight).float().view(r_BnD.shape)
        del dh_nI, x_nD
        norms = (weights.norm_weight, weights.norm_bias, gradients.norm_weight, gradients.norm_bias)
        dr = layer_norm_backward(dx_BnD, r_BnD, normed, *norms)
        torch.add(dout_BlD[tile.here], dr, out=dr_BlD[tile.here])
        del normed, dx_BnD, dr  # not beside those of the next tile
    return dr_BlD, gradients
