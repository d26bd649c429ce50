"""The MLP's half-block by the functions of ops/native; the same two as in mlp.py, for a CPU.

    r --norm--> x --product--> h --+ bias, GELU--> a --product--> y --+ bias--> + r

What lies between two products is one function. What the policy keeps is h without its bias.

B batch, l local length, D width, I inner width, n tokens of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.mlp import MLPWeights
from hyena_ds.model.operator_native import add_to_residual
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.native import functions as native
from hyena_ds.ops.tiles import Tile, tiles


def mlp_forward(
    r_BlD: Tensor, weights: MLPWeights, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """As `model.mlp.mlp_forward`."""
    r_BlD = r_BlD.contiguous()
    native.check_floats(r_BlD, *weights)
    dtype = call.compute_dtype
    B, l, D = r_BlD.shape
    inner = weights.up_bias.numel()
    up_weight, down_weight = weights.up_weight.to(dtype), weights.down_weight.to(dtype)
    cut = _cut(B, l, inner, dtype, r_BlD.device)
    out_BlD = empty_like(r_BlD)
    kept_BlI = empty((B, l, inner), r_BlD.device, dtype) if call.policy.keep_inner else None
    x, scratch = (r_BlD.new_empty(_most(cut), width, dtype=dtype) for width in (D, inner))
    for tile in cut:
        n = _tokens(tile)
        x_nD, a_nI = x[:n], scratch[:n]
        native.norm(r_BlD[tile.here], weights.norm_weight, weights.norm_bias, x_nD.view_as(r_BlD[tile.here]))
        h_nI = a_nI if kept_BlI is None else kept_BlI[tile.here].view(n, inner)
        torch.mm(x_nD, up_weight.t(), out=h_nI)
        native.gelu(h_nI, weights.up_bias, a_nI)
        torch.mm(a_nI, down_weight.t(), out=x_nD)
        add_to_residual(r_BlD, x_nD, weights.down_bias, tile, call, layer, dropout, out_BlD)
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
    r_BlD, dout_BlD = r_BlD.contiguous(), dout_BlD.contiguous()
    native.check_floats(r_BlD, dout_BlD, *weights)
    dtype = call.compute_dtype
    B, l, D = r_BlD.shape
    inner = weights.up_bias.numel()
    up_weight, down_weight = weights.up_weight.to(dtype), weights.down_weight.to(dtype)
    gradients = MLPWeights(*(torch.zeros_like(weight) for weight in weights))
    cut = _cut(B, l, inner, dtype, r_BlD.device)
    dr_BlD = empty_like(r_BlD)
    x, rounded = (r_BlD.new_empty(_most(cut), D, dtype=dtype) for _ in range(2))
    a, da = (r_BlD.new_empty(_most(cut), inner, dtype=dtype) for _ in range(2))
    sums = r_BlD.new_empty(inner * D, dtype=dtype)
    for tile in cut:
        n = _tokens(tile)
        x_nD, a_nI, da_nI, r_BnD = x[:n], a[:n], da[:n], r_BlD[tile.here]
        native.norm(r_BnD, weights.norm_weight, weights.norm_bias, x_nD.view_as(r_BnD))
        h_nI = torch.mm(x_nD, up_weight.t(), out=a_nI) if kept_BlI is None else kept_BlI[tile.here].view(n, inner)
        dropped_nD = call.drop(dout_BlD[tile.here], tile, layer, dropout).reshape(n, D)
        dy_nD = native.output_gradient(dropped_nD, rounded[:n], gradients.down_bias)
        torch.mm(dy_nD, down_weight, out=da_nI)
        native.gelu_backward(h_nI, weights.up_bias, a_nI, da_nI, gradients.up_bias)
        native.add_product(gradients.down_weight, dy_nD.t(), a_nI, sums)
        native.add_product(gradients.up_weight, da_nI.t(), x_nD, sums)
        torch.mm(da_nI, up_weight, out=x_nD)
        of_norm = gradients.norm_weight, gradients.norm_bias
        dout_nD, dr_nD = dout_BlD[tile.here].view(n, D), dr_BlD[tile.here].view(n, D)
        native.norm_backward(x_nD, r_BnD.view(n, D), weights.norm_weight, dout_nD, dr_nD, *of_norm)
    return dr_BlD, gradients


def _cut(batch: int, length: int, inner: int, dtype: torch.dtype, device: torch.device) -> list[Tile]:
    return list(tiles(batch, length, max(1, inner * dtype.itemsize // 4), device))


def _tokens(tile: Tile) -> int:
    return int(tile.rows.stop - tile.rows.start) * (tile.last - tile.first)


def _most(cut: list[Tile]) -> int:
    return max(_tokens(tile) for tile in cut)
