"""The Hyena operator's half-block: the only part of the model that looks along the sequence.

    r --norm--> x --projection--> p --short filter--> x0, x1, v
    u = v x1;  y = long convolution(u, k) + skip u;  r <- r + dropout(out projection(y x0))

Its two looks to the left are the halo of the short filter and the long convolution; both go through `Layout.exchange`.
Projections and gates run in tiles of tokens that stay in cache and write channel-major rows, so nothing is transposed;
the convolution runs in groups of channels, whose exchange overlaps the transforms. Forward and backward are plain
functions, which Block (block.py) joins into one autograd function. Source: the published HyenaOperator of order 2, order
[x0, x1, v].

B batch, l local length, L context length, D width, C = 3 D, g some channels, n tokens of a tile, m = n + 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.model.filter import ImplicitFilter
from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass, pieces
from hyena_ds.model.projection import OperatorWeights, Projection, columns, short_filter
from hyena_ds.ops import place
from hyena_ds.ops.fft_convolution import channels_at_once
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
    x0_BDl = empty((B, D, l), r_BlD.device)
    u_BDl = empty((B, D, l), r_BlD.device, call.moved_dtype(r_BlD.device))
    for tile in project.tiles_with_the_first_last():
        x0, x1, v = short_convolution(project(tile), *short).chunk(3, dim=1)
        x0_BDl[columns(tile)] = x0
        torch.mul(x1, v, out=u_BDl[columns(tile)])
    if call.watch is not None:
        call.watch(r_BlD, u_BDl)
    y_BDl = empty_like(u_BDl) if policy.keep_convolution else u_BDl
    groups: list[tuple[Tensor, ...]] = []
    skip_d1 = weights.skip[call.layout.exchange.own_channels(D)].unsqueeze(1)

    def convolve(channels: slice, u_BgL: Tensor) -> tuple[Tensor]:
        if policy.keep_spectra and call.convolution.forward_with_spectra is not None:
            y_BgL, *spectra = call.convolution.forward_with_spectra(u_BgL, k_dL[channels])
            groups.append(tuple(spectra))
        else:
            y_BgL = call.convolution.forward(u_BgL, k_dL[channels])
            if policy.keep_convolution:
                groups.append((u_BgL,))
        return (y_BgL if on_device else y_BgL.addcmul_(u_BgL, skip_d1[channels]),)

    with _skip_in_filter(k_dL, skip_d1, on_device):
        call.layout.exchange.through_channels((u_BDl,), (y_BDl,), convolve, _at_once(u_BDl, call))
    out_BlD = empty_like(r_BlD)
    out_weight = weights.out_weight.to(call.compute_dtype)
    for tile in project.tiles():
        z_BDn = _gated(y_BDl[columns(tile)], x0_BDl[columns(tile)], call)
        if on_device and not call.drops(dropout):
            out_BnD = torch.add(r_BlD[tile.here], weights.out_bias, out=out_BlD[tile.here])
            add_to_tokens(out_BnD, z_BDn, out_weight.t())
            continue
        mixed_BnD = to_tokens(z_BDn, out_weight.t()).add_(weights.out_bias)
        torch.add(r_BlD[tile.here], call.drop(mixed_BnD, tile, layer, dropout), out=out_BlD[tile.here])
    return out_BlD, Kept(project.held_BCm, y_BDl if policy.keep_convolution else None, tuple(groups))


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
        else:
            x0 = short_convolution(p_BCm[:, :D], *(of_all[:D] for of_all in short))
        torch.mul(output_gradient(tile)[1], x0, out=dy_BDl[columns(tile)])

    y_BDl, du_BDl = _convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, gradients.skip, slot, call, kept)

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
        else:
            dq_BCn = torch.cat((dz_BDn.mul_(y), torch.mul(du, v), torch.mul(du, x1)), dim=1)
        dweight, dbias = short_convolution_to_weight(dq_BCn, p_BCm)
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
        complete = Tile(tile.rows, begin, begin + dq_BCm.shape[-1] - HALO)
        dp_BCn = short_convolution_to_input(dq_BCm, weights.short_weight)
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
    return dout_BlD, gradients


def _convolution_backward(
    dy_BDl: Tensor,
    u_BDl: Tensor | None,
    k_dL: Tensor,
    skip_D: Tensor,
    dskip_D: Tensor,
    slot: FilterSlot,
    call: ForwardPass,
    kept: Kept,
) -> tuple[Tensor, Tensor]:
    """(y, du); du overwrites dy, and y, where it was not kept, u."""
    own = call.layout.exchange.own_channels(skip_D.shape[0])
    skip_d1, dskip_d = skip_D[own].unsqueeze(1), dskip_D[own]
    at_once = _at_once(dy_BDl, call)
    slot.begin_gradient(k_dL, call.filters.last)
    on_device = place.on_device(dy_BDl.device)

    def correlate(channels: slice, dy_BgL: Tensor, u_BgL: Tensor | None = None) -> tuple[Tensor, ...]:
        of_group = kept.groups[channels.start // at_once] if u_BgL is None else (u_BgL,)
        if len(of_group) == 2 and call.convolution.backward_from_spectra is not None:
            du_BgL, dk_gL = call.convolution.backward_from_spectra(dy_BgL, *of_group)
            y_BgL = None
        else:
            du_BgL, dk_gL, y_BgL = call.convolution.backward(dy_BgL, of_group[0], k_dL[channels], u_BgL is not None)
        slot.add_gradient(channels, dk_gL)
        dskip_d[channels] = dk_gL[:, 0]  # the skip is a filter of lag zero
        if not on_device:
            du_BgL.addcmul_(dy_BgL, skip_d1[channels])
            if y_BgL is not None:
                y_BgL.addcmul_(of_group[0], skip_d1[channels])
        return (du_BgL,) if y_BgL is None else (du_BgL, y_BgL)

    buffers = (dy_BDl,) if u_BDl is None else (dy_BDl, u_BDl)
    with _skip_in_filter(k_dL, skip_d1, on_device, restored=not call.filters.last):
        call.layout.exchange.through_channels(buffers, buffers, correlate, at_once)
    y_BDl = kept.y_BDl if u_BDl is None else u_BDl
    assert y_BDl is not None
    return y_BDl, dy_BDl


def _gated(y_BDn: Tensor, x0_BDn: Tensor, call: ForwardPass) -> Tensor:
    """y x0 in the compute dtype."""
    if place.on_device(y_BDn.device) and call.compute_dtype != y_BDn.dtype:
        return torch.mul(y_BDn, x0_BDn, out=torch.empty_like(x0_BDn, dtype=call.compute_dtype))
    return torch.mul(y_BDn, x0_BDn).to(call.compute_dtype)


@contextmanager
def _skip_in_filter(k_dL: Tensor, skip_d1: Tensor, on_device: bool, restored: bool = True) -> Iterator[None]:
    """On a device the skip is the part of the filter that it is, of lag zero, while the convolution runs; on a CPU it is not."""
    if not on_device:
        yield
        return
    lag_zero_d1 = k_dL[:, :1].clone()
    k_dL[:, :1] += skip_d1
    yield
    if restored:  # else the filter's gradient is in its place
        k_dL[:, :1] = lag_zero_d1


def _at_once(x_BDl: Tensor, call: ForwardPass) -> int:
    B, D, _ = x_BDl.shape
    P = call.layout.exchange.size
    L, device = call.layout.context_length, x_BDl.device
    most = -(-channels_at_once(B, D // P, L, device) // pieces(call.policy, device))
    return min(most, channels_at_once(B, D // P, L, device, P > 1))
