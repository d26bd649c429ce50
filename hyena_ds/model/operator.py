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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.model.filter import ImplicitFilter
from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.fft_convolution import channels_at_once
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.layer_norm import layer_norm, layer_norm_backward
from hyena_ds.ops.products import add_product, to_channels, to_tokens
from hyena_ds.ops.short_convolution import (
    HALO,
    short_convolution,
    short_convolution_to_input,
    short_convolution_to_weight,
)
from hyena_ds.ops.tiles import Tile, tiles


class OperatorWeights(NamedTuple):
    """Parameters of the half-block but for the implicit filter's."""

    norm_weight: Tensor
    norm_bias: Tensor
    in_weight: Tensor
    in_bias: Tensor
    short_weight: Tensor
    short_bias: Tensor
    skip: Tensor
    out_weight: Tensor
    out_bias: Tensor


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
    policy = call.policy
    project = _Projection(r_BlD, weights, call, policy.keep_projections)
    x0_BDl, u_BDl = (empty((B, D, l), r_BlD.device) for _ in range(2))
    for tile in project.tiles_with_the_first_last():
        p_BCm = project(tile)
        x0, x1, v = short_convolution(p_BCm, weights.short_weight, weights.short_bias).chunk(3, dim=1)
        x0_BDl[_columns(tile)] = x0
        torch.mul(x1, v, out=u_BDl[_columns(tile)])
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
        return (y_BgL.addcmul_(u_BgL, skip_d1[channels]),)

    call.layout.exchange.through_channels((u_BDl,), (y_BDl,), convolve, _at_once(u_BDl, call))
    out_BlD = empty_like(r_BlD)
    out_weight = weights.out_weight.to(call.compute_dtype)
    for tile in project.tiles():
        z_BDn = torch.mul(y_BDl[_columns(tile)], x0_BDl[_columns(tile)])
        mixed_BnD = to_tokens(z_BDn.to(call.compute_dtype), out_weight.t()).add_(weights.out_bias)
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
    gradients = OperatorWeights(*(torch.zeros_like(weight) for weight in weights))
    project = _Projection(r_BlD, weights, call, call.policy.hold_projections, kept.projected_BCm)
    u_BDl = None if kept.groups else empty((B, D, l), r_BlD.device)
    dy_BDl = empty((B, D, l), r_BlD.device)
    out_weight = weights.out_weight.to(call.compute_dtype)

    def output_gradient(tile: Tile) -> tuple[Tensor, Tensor]:
        """Gradients of the out projection's output (B, n, D) and input (B, D, n)."""
        dmixed_BnD = call.drop(dout_BlD[tile.here], tile, layer, dropout).to(call.compute_dtype)
        return dmixed_BnD, to_channels(out_weight.t(), dmixed_BnD)

    for tile in project.tiles_with_the_first_last():
        p_BCm = project(tile)
        if u_BDl is not None:
            x0, x1, v = short_convolution(p_BCm, weights.short_weight, weights.short_bias).chunk(3, dim=1)
            torch.mul(x1, v, out=u_BDl[_columns(tile)])
        else:
            x0 = short_convolution(p_BCm[:, :D], weights.short_weight[:D], weights.short_bias[:D])
        torch.mul(output_gradient(tile)[1], x0, out=dy_BDl[_columns(tile)])

    y_BDl, du_BDl = _convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, gradients.skip, slot, call, kept)

    in_weight = weights.in_weight.to(call.compute_dtype)
    right_BC2 = None
    before_BC2 = None
    for tile in project.tiles():
        p_BCm = project(tile)
        x0, x1, v = short_convolution(p_BCm, weights.short_weight, weights.short_bias).chunk(3, dim=1)
        dmixed_BnD, dz_BDn = output_gradient(tile)
        y, du = y_BDl[_columns(tile)], du_BDl[_columns(tile)]
        z_BDn = torch.mul(y, x0).to(call.compute_dtype)
        add_product(gradients.out_weight, dmixed_BnD.mT, z_BDn.mT)
        gradients.out_bias.add_(dmixed_BnD.sum((0, 1), dtype=torch.float32))
        dq_BCn = torch.cat((dz_BDn.mul_(y), torch.mul(du, v), torch.mul(du, x1)), dim=1)
        dweight, dbias = short_convolution_to_weight(dq_BCn, p_BCm)
        gradients.short_weight.add_(dweight)
        gradients.short_bias.add_(dbias)
        # A token's projection is used by itself and the two after it: tiles hand their last two on.
        if tile.first == 0:
            head_BC2 = dq_BCn[..., :HALO] if l >= HALO else F.pad(dq_BCn, (0, HALO - l))
            right_BC2 = call.layout.exchange.from_right(head_BC2)
            dq_BCm, begin = dq_BCn, 0
        else:
            dq_BCm, begin = torch.cat((before_BC2, dq_BCn), dim=-1), tile.first - HALO  # type: ignore[arg-type]
        before_BC2 = dq_BCn[..., -HALO:]
        if tile.last == l:
            assert right_BC2 is not None
            dq_BCm = torch.cat((dq_BCm, right_BC2.wait()), dim=-1)
        complete = Tile(tile.rows, begin, begin + dq_BCm.shape[-1] - HALO)
        dp_BCn = short_convolution_to_input(dq_BCm, weights.short_weight)
        gradients.in_bias.add_(dp_BCn.sum((0, 2)))
        dp_BCn = dp_BCn.to(call.compute_dtype)
        normed = layer_norm(r_BlD[complete.here], weights.norm_weight, weights.norm_bias)
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

    def correlate(channels: slice, dy_BgL: Tensor, u_BgL: Tensor | None = None) -> tuple[Tensor, ...]:
        of_group = kept.groups[channels.start // at_once] if u_BgL is None else (u_BgL,)
        if len(of_group) == 2 and call.convolution.backward_from_spectra is not None:
            du_BgL, dk_gL = call.convolution.backward_from_spectra(dy_BgL, *of_group)
            y_BgL = None
        else:
            du_BgL, dk_gL, y_BgL = call.convolution.backward(dy_BgL, of_group[0], k_dL[channels], u_BgL is not None)
        slot.add_gradient(channels, dk_gL)
        dskip_d[channels] = dk_gL[:, 0]  # the skip is a filter of lag zero
        du_BgL.addcmul_(dy_BgL, skip_d1[channels])
        return (du_BgL,) if y_BgL is None else (du_BgL, y_BgL.addcmul_(of_group[0], skip_d1[channels]))

    buffers = (dy_BDl,) if u_BDl is None else (dy_BDl, u_BDl)
    call.layout.exchange.through_channels(buffers, buffers, correlate, at_once)
    y_BDl = kept.y_BDl if u_BDl is None else u_BDl
    assert y_BDl is not None
    return y_BDl, dy_BDl


class _Projection:
    """p of a tile and its two predecessors; those before the first tile come from the left neighbour.

    They are asked for at once, and waited for by the tile that needs them. With `hold` what is computed once is held for
    the next time; `held_BCm` are all projections as another pass held them.
    """

    def __init__(
        self, r_BlD: Tensor, weights: OperatorWeights, call: ForwardPass, hold: bool, held_BCm: Tensor | None = None
    ):
        B, l, D = r_BlD.shape
        self.held_BCm = empty((B, 3 * D, l + HALO), r_BlD.device) if hold and held_BCm is None else held_BCm
        self._missing = set() if held_BCm is not None else {_corner(tile) for tile in tiles(B, l, 4 * D, r_BlD.device)}
        self._r_BlD, self._weights, self._call = r_BlD, weights, call
        self._in_weight = weights.in_weight.to(call.compute_dtype)
        self._halo = None
        if held_BCm is None:  # else no tile needs the neighbour again
            tail_B2D = r_BlD.new_zeros((B, HALO, D))
            tail_B2D[:, -l:] = r_BlD[:, -HALO:]
            self._halo = call.layout.exchange.from_left(tail_B2D)

    def tiles(self) -> list[Tile]:
        B, l, D = self._r_BlD.shape
        return list(tiles(B, l, 4 * D, self._r_BlD.device))

    def tiles_with_the_first_last(self) -> list[Tile]:
        """The tiles that need the neighbour's tokens are done when these have had time to arrive."""
        return sorted(self.tiles(), key=lambda tile: tile.first == 0)

    def __call__(self, tile: Tile) -> Tensor:
        """(B, C, n + 2), float32."""
        held_BCm = None if self.held_BCm is None else self.held_BCm[_columns(tile, HALO)]
        if held_BCm is not None and _corner(tile) not in self._missing:
            return held_BCm
        self._missing.discard(_corner(tile))
        if tile.first:
            r_BmD = self._r_BlD[tile.rows, tile.first - HALO : tile.last]
        else:
            assert self._halo is not None
            r_BmD = torch.cat((self._halo.wait()[tile.rows], self._r_BlD[tile.here]), dim=1)
        x_BmD = layer_norm(r_BmD, self._weights.norm_weight, self._weights.norm_bias).x
        p_BCm = to_channels(self._in_weight, x_BmD.to(self._call.compute_dtype), held_BCm)
        p_BCm.add_(self._weights.in_bias.unsqueeze(1))
        if tile.first == 0 and self._call.layout.offset == 0:
            # Before the first token the short filter sees zeros, not projected zeros.
            p_BCm[..., :HALO] = 0.0
        return p_BCm


def _at_once(x_BDl: Tensor, call: ForwardPass) -> int:
    B, D, _ = x_BDl.shape
    return channels_at_once(B, D // call.layout.exchange.size, call.layout.context_length, x_BDl.device)


def _corner(tile: Tile) -> tuple[int, int]:
    return tile.rows.start, tile.first


def _columns(tile: Tile, more: int = 0) -> tuple[slice, slice, slice]:
    """A tile of a channel-major tensor, with `more` columns when the tensor has as many in front."""
    return tile.rows, slice(None), slice(tile.first, tile.last + more)
