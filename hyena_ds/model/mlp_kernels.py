"""The MLP's half-block by Triton kernels; the same functions as in mlp.py, for a device.

    r --norm--> x --product--> h --+ bias, GELU--> a --product--> y --+ bias, dropout--> + r

Tiles bound the memory of h, a and their gradients. What the policy keeps is h without its bias. Imports triton.

B batch, l local length, D width, I inner width, n tokens of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.mlp import MLPWeights
from hyena_ds.model.operator_kernels import dropped_of
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.products import add_product
from hyena_ds.ops.sizes import AT_WORK_IN_KERNELS
from hyena_ds.ops.tiles import tiles
from hyena_ds.ops.triton.gelu import gelu, gelu_backward
from hyena_ds.ops.triton.residual import add_dropped, dropped_gradient, norm, norm_backward


def mlp_forward(
    r_BlD: Tensor, weights: MLPWeights, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """As `model.mlp.mlp_forward`."""
    dtype = call.compute_dtype
    B, l, _ = r_BlD.shape
    inner = weights.up_bias.numel()
    up_weight, down_weight = weights.up_weight.to(dtype), weights.down_weight.to(dtype)
    out_BlD = empty_like(r_BlD)
    kept_BlI = empty((B, l, inner), r_BlD.device, dtype) if call.policy.keep_inner else None
    for tile in tiles(B, l, inner * call.pieces(r_BlD.device, AT_WORK_IN_KERNELS), r_BlD.device):
        r_BnD = r_BlD[tile.here]
        x_nD = norm(r_BnD, weights.norm_weight, weights.norm_bias, dtype).flatten(0, 1)
        h_nI = empty((x_nD.shape[0], inner), r_BlD.device, dtype)
        if kept_BlI is not None:
            h_nI = kept_BlI[tile.here].flatten(0, 1)
        torch.mm(x_nD, up_weight.t(), out=h_nI)
        y_nD = torch.mm(gelu(h_nI, weights.up_bias), down_weight.t())
        dropped = dropped_of(call, layer, dropout, tile.rows, tile.first)
        add_dropped(r_BnD, y_nD.view(r_BnD.shape), weights.down_bias, dropped, out_BlD[tile.here])
        del x_nD, h_nI, y_nD  # not beside those of the next tile
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
    """As `model.mlp.mlp_backward`."""
    dtype = call.compute_dtype
    dout_BlD = dout_BlD.contiguous()
    B, l, _ = r_BlD.shape
    inner = weights.up_bias.numel()
    up_weight, down_weight = weights.up_weight.to(dtype), weights.down_weight.to(dtype)
    gradients = MLPWeights(*(torch.zeros_like(weight) for weight in weights))
    dr_BlD = dout_BlD  # each kernel reads of it what it writes
    for tile in tiles(B, l, inner * call.pieces(r_BlD.device, AT_WORK_IN_KERNELS), r_BlD.device):
        r_BnD, dout_BnD = r_BlD[tile.here], dout_BlD[tile.here]
        x_nD = norm(r_BnD, weights.norm_weight, weights.norm_bias, dtype).flatten(0, 1)
        h_nI = torch.mm(x_nD, up_weight.t()) if kept_BlI is None else kept_BlI[tile.here].flatten(0, 1)
        dropped = dropped_of(call, layer, dropout, tile.rows, tile.first)
        dy_BnD, ddown_bias = dropped_gradient(dout_BnD, dropped, dtype)
        dy_nD = dy_BnD.flatten(0, 1)
        a_nI, dh_nI, dup_bias = gelu_backward(h_nI, torch.mm(dy_nD, down_weight), weights.up_bias, True)
        add_product(gradients.down_weight, dy_nD.t().unsqueeze(0), a_nI.unsqueeze(0))
        add_product(gradients.up_weight, dh_nI.t().unsqueeze(0), x_nD.unsqueeze(0))
        dx_BnD = torch.mm(dh_nI, up_weight).view(r_BnD.shape)
        dnorm_weight, dnorm_bias = norm_backward(dx_BnD, r_BnD, weights.norm_weight, dout_BnD, dr_BlD[tile.here])
        gradients.norm_weight.add_(dnorm_weight)
        gradients.norm_bias.add_(dnorm_bias)
        gradients.up_bias.add_(dup_bias)
        gradients.down_bias.add_(ddown_bias)
        del x_nD, h_nI, a_nI, dh_nI, dy_BnD, dy_nD, dx_BnD  # not beside those of the next tile
    return dr_BlD, gradients
