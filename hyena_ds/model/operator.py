"""The Hyena operator's half-block: the only part of the model that looks along the sequence.

    r --norm--> x --projection--> p --short filter--> x0, x1, v
    u = v x1;  y = long convolution(u, k) + skip u;  r <- r + dropout(out projection(y x0))

Its two looks to the left are the halo of the short filter and the long convolution; both go through `Layout.exchange`.
Projections and gates run in tiles of tokens that stay in cache and write channel-major rows, so nothing is transposed;
the convolution (long_convolution.py) runs in groups of channels. Forward and backward are plain functions, which Block
(block.py) joins into one autograd function; operator_kernels.py has the same two by Triton kernels. Source: the published
HyenaOperator of order 2, order [x0, x1, v].

B batch, l local length, L context length, D width, C = 3 D, n tokens of a tile, m = n + 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.model.filter import ImplicitFilter
from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.long_convolution import convolution_backward, convolution_forward
from hyena_ds.model.projection import OperatorWeights, Projection, columns, short_filter
from hyena_ds.ops import place
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.layer_norm import layer_norm_backward
from hyena_ds.ops.products import add_product, add_to_tokens, to_channels, to_tokens
from hyena_ds.ops.short_convolution import (
    HALO,
    short_convolution,
    short_convolution_to_input,
    short_convolution_to_weight,
)
from hyena_ds.ops.tiles import Tile


class ShortFilter(nn.Module):
    """Parameters of the depth-wise 3-tap causal convolution, as in a grouped Conv1d."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, HALO + 1))
        self.bias = nn.Parameter(torch.empty(channels))


class HyenaOperator(nn.Module):
    """Parameters of the operator."""

    def __init__(self, width: int, implicit_filter: ImplicitFilter):
        super().__init__()
        self.in_projection = nn.Linear(width, 3 * width)
        self.short_filter = ShortFilter(3 * width)
        self.implicit_filter = implicit_filter
        self.skip = nn.Parameter(torch.empty(width))
        self.out_projection = nn.Linear(width, width)


class Kept(NamedTuple):
    """What of a forward pass lives until backward, as the policy says."""

    projected_BCm: Tensor | None = None
    y_BDl: Tensor | None = None
    groups: tuple[tuple[Tensor, ...], ...] = ()
    """For each group of channels, the convolution's input in channel layout, or the spectra of input and filter."""


def operator_forward(
    r_BlD: Tensor, weights: OperatorWeights, k_dL: Tensor, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Kept]:
    """(the residual after the half-block, what the policy keeps). Collective over the sequence-parallel group."""
    B, l, D = r_BlD.shape
    policy, on_device = call.policy, place.on_device(r_BlD.device)
    project = Projection(r_BlD, weights, call, policy.keep_projections)
    short = short_filter(weights, on_device)
    x0_BDl = empty((B, D, l), r_BlD.device, call.compute_dtype if on_device else torch.float32)
    u_BDl = empty((B, D, l), r_BlD.device, call.moved_dtype(r_BlD.device))
    for tile in project.tiles_with_the_first_last():
        x0, x1, v = short_convolution(project(tile), *short).chunk(3, dim=1)
        x0_BDl[columns(tile)] = x0
        torch.mul(x1, v, out=u_BDl[columns(tile)])
        del x0, x1, v  # neither beside the next tile's nor beside the transforms
    if call.watch is not None:
        call.watch(r_BlD, u_BDl)
    y_BDl, groups = convolution_forward(u_BDl, k_dL, weights.skip, call)
    in_place = on_device and not policy.keep_convolution  # y is read no more, and x0 goes before the result comes
    z_BDl = torch.mul(y_BDl, x0_BDl, out=y_BDl) if in_place else None
    if in_place:
        del x0_BDl
    out_BlD = empty_like(r_BlD)
    out_weight = weights.out_weight.to(call.compute_dtype)
    for tile in project.tiles():
        if z_BDl is None:
            z_BDn = _gated(y_BDl[columns(tile)], x0_BDl[columns(tile)], call)
        else:
            z_BDn = z_BDl[columns(tile)].to(call.compute_dtype)
        if on_device and not call.drops(dropout):
            out_BnD = torch.add(r_BlD[tile.here], weights.out_bias, out=out_BlD[tile.here])
            add_to_tokens(out_BnD, z_BDn, out_weight.t())
            continue
        mixed_BnD = to_tokens(z_BDn, out_weight.t()).add_(weights.out_bias)
        torch.add(r_BlD[tile.here], call.drop(mixed_BnD, tile, layer, dropout), out=out_BlD[tile.here])
    return out_BlD, Kept(project.held_BCm, y_BDl if policy.keep_convolution else None, groups)


def operator_backward(
    dout_BlD: Tensor,
    r_BlD: Tensor,
    weights: OperatorWeights,
    k_dL: Tensor,
    slot: FilterSlot,
    call: ForwardPass,
    layer: int,
    dropout: float,
    kept: Kept,
) -> tuple[Tensor, OperatorWeights]:
    """(gradient of r, gradients of the parameters); the filter's is added to `slot`. Collective, as forward.

    The gradient of r overwrites `dout`.
    """
    B, l, D = r_BlD.shape
    on_device = place.on_device(r_BlD.device)
    gradients = OperatorWeights(*(torch.zeros_like(weight) for weight in weights))
    short = short_filter(weights, on_device)
    project = Projection(r_BlD, weights, call, call.policy.hold_projections, kept.projected_BCm)
    moved = call.moved_dtype(r_BlD.device)
    u_BDl = None if kept.groups else empty((B, D, l), r_BlD.device, moved)
    dy_BDl = empty((B, D, l), r_BlD.device, moved)
    out_weight = weights.out_weight.to(call.compute_dtype)

    def output_gradient(tile: Tile) -> tuple[Tensor, Tensor]:
        """Gradients of the out projection's output (B, n, D) and input (B, D, n)."""
        dmixed_BnD = call.drop(dout_BlD[tile.here], tile, layer, dropout).to(call.compute_dtype)
        return dmixed_BnD, to_channels(out_weight.t(), dmixed_BnD)

    for tile in project.tiles_with_the_first_last():
        p_BCm = project(tile)
        if u_BDl is not None:
            x0, x1, v = short_convolution(p_BCm, *short).chunk(3, dim=1)
            torch.mul(x1, v, out=u_BDl[columns(tile)])
            del x1, v
        else:
            x0 = short_convolution(p_BCm[:, :D], *(of_all[:D] for of_all in short))
        torch.mul(output_gradient(tile)[1], x0, out=dy_BDl[columns(tile)])
        del p_BCm, x0  # neither beside the next tile's nor beside the transforms

    through = kept.groups, kept.y_BDl
    y_BDl, du_BDl = convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, gradients.skip, slot, call, *through)

    in_weight = weights.in_weight.to(call.compute_dtype)
    right_BC2 = None
    before_BC2 = None
    for tile in project.tiles():
        p_BCm = project(tile)
        x0, x1, v = short_convolution(p_BCm, *short).chunk(3, dim=1)
        dmixed_BnD, dz_BDn = output_gradient(tile)
        y, du = y_BDl[columns(tile)], du_BDl[columns(tile)]
        add_product(gradients.out_weight, dmixed_BnD.mT, _gated(y, x0, call).mT)
        gradients.out_bias.add_(dmixed_BnD.sum((0, 1), dtype=torch.float32))
        dq_BCm = None
        if on_device:  # the tile and its neighbours' tokens in one tensor, which the convolution reads as it is
            begins = 0 if tile.first == 0 else HALO
            dq_BCm = r_BlD.new_empty((*p_BCm.shape[:2], begins + y.shape[-1] + (HALO if tile.last == l else 0)))
            dq_BCn = dq_BCm[..., begins : begins + y.shape[-1]]
            for part, (a, b) in zip(dq_BCn.chunk(3, dim=1), ((dz_BDn, y), (du, v), (du, x1)), strict=True):
                torch.mul(a, b, out=part)
            del a, b, part
        else:
            dq_BCn = torch.cat((dz_BDn.mul_(y), torch.mul(du, v), torch.mul(du, x1)), dim=1)
        del x0, x1, v, dz_BDn, dmixed_BnD, y, du
        dweight, dbias = short_convolution_to_weight(dq_BCn, p_BCm)
        del p_BCm
        gradients.short_weight.add_(dweight)
        if on_device:  # p is without its bias
            gradients.short_weight.add_((dbias * weights.in_bias).view(-1, 1, 1))
        gradients.short_bias.add_(dbias)
        # A token's projection is used by itself and the two after it: tiles hand their last two on.
        if tile.first == 0:
            head_BC2 = dq_BCn[..., :HALO] if l >= HALO else F.pad(dq_BCn, (0, HALO - l))
            right_BC2 = call.layout.exchange.from_right(head_BC2)
        begin = max(0, tile.first - HALO)
        if dq_BCm is None:
            dq_BCm = dq_BCn if tile.first == 0 else torch.cat((before_BC2, dq_BCn), dim=-1)  # type: ignore[arg-type]
            if tile.last == l:
                dq_BCm = torch.cat((dq_BCm, right_BC2.wait()), dim=-1)  # type: ignore[union-attr]
            before_BC2 = dq_BCn[..., -HALO:]
        else:
            if tile.first:
                dq_BCm[..., :HALO].copy_(before_BC2)  # type: ignore[arg-type]
            if tile.last == l:
                dq_BCm[..., -HALO:].copy_(right_BC2.wait())  # type: ignore[union-attr]
            before_BC2 = dq_BCn[..., -HALO:].clone()
        del dq_BCn
        complete = Tile(tile.rows, begin, begin + dq_BCm.shape[-1] - HALO)
        dp_BCn = short_convolution_to_input(dq_BCm, weights.short_weight)
        del dq_BCm
        if not on_device:
            gradients.in_bias.add_(dp_BCn.sum((0, 2)))
        dp_BCn = dp_BCn.to(call.compute_dtype)
        if on_device:
            gradients.in_bias.add_(dp_BCn.sum((0, 2), dtype=torch.float32))
        normed = project.normed(tile, complete)
        add_product(gradients.in_weight, dp_BCn, normed.x.to(call.compute_dtype))
        dx_BnD = to_tokens(dp_BCn, in_weight)
        norms = (weights.norm_weight, weights.norm_bias, gradients.norm_weight, gradients.norm_bias)
        dout_BlD[complete.here] += layer_norm_backward(dx_BnD, r_BlD[complete.here], normed, *norms)
        del dp_BCn, normed, dx_BnD
    return dout_BlD, gradients


def _gated(y_BDn: Tensor, x0_BDn: Tensor, call: ForwardPass) -> Tensor:
    """y x0 in the compute dtype."""
    if place.on_device(y_BDn.device) and call.compute_dtype != y_BDn.dtype:
        return torch.mul(y_BDn, x0_BDn, out=torch.empty_like(x0_BDn, dtype=call.compute_dtype))
    return torch.mul(y_BDn, x0_BDn).to(call.compute_dtype)
