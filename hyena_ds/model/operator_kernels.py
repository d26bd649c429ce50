"""The Hyena operator's half-block by Triton kernels; the same functions as in operator.py, for a device.

    r --norm--> x --product--> p --gates--> u --long convolution--> y --gates with p--> z --product, + bias, dropout--> + r

A kernel keeps nothing between p and u. What lies between kernels has the compute dtype, but for the residual and what goes into
and out of the convolution. Rows of p begin with the first token of a tile; what the two before it give comes apart, of the first
tile from the left neighbour. Of a block that is in one tile, what is made before the convolution lives until it is used after it;
of one that is cut, forward holds the part of p that gives x0, and backward makes p and the product's gradients twice. Imports
triton.

B batch, l local length, L context length, D width, C = 3 D, n tokens of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.long_convolution import convolution_backward, convolution_forward
from hyena_ds.model.operator import Kept
from hyena_ds.model.projection import OperatorWeights, columns
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.products import add_product, product_to_channels, product_to_tokens
from hyena_ds.ops.short_convolution import HALO, short_convolution
from hyena_ds.ops.sizes import AT_WORK_IN_KERNELS
from hyena_ds.ops.tiles import Tile, tiles
from hyena_ds.ops.triton.dropout import Dropped
from hyena_ds.ops.triton.gates import ShortWeights, gates, gates_backward
from hyena_ds.ops.triton.residual import add_dropped, dropped_gradient, norm, norm_backward


def operator_forward(
    r_BlD: Tensor, weights: OperatorWeights, k_dL: Tensor, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Kept]:
    """As `model.operator.operator_forward`."""
    r_BlD = r_BlD.contiguous()
    B, l, D = r_BlD.shape
    policy, device = call.policy, r_BlD.device
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    project = _Projection(r_BlD, weights, call)
    u_BDl = empty((B, D, l), device, call.moved_dtype(device))
    cut = len(project.tiles) > 1
    p_BCl = empty((B, D, l), device, call.compute_dtype) if cut else project(project.all)  # all of it, or what gives x0
    for tile in project.tiles_with_the_first_last():
        p_BCn = project(tile) if cut else p_BCl
        gates(p_BCn, project.left(tile), short, u_BDn=u_BDl[columns(tile)])
        if cut:
            p_BCl[columns(tile)] = p_BCn[:, :D]
        del p_BCn  # neither beside the next tile's nor beside the transforms
    if call.watch is not None:
        call.watch(r_BlD, u_BDl)
    y_BDl, groups = convolution_forward(u_BDl, k_dL, weights.skip, call)
    in_place = y_BDl.dtype == call.compute_dtype and not policy.keep_convolution
    z_BDl = y_BDl if in_place else empty((B, D, l), device, call.compute_dtype)
    gates(p_BCl, project.left(project.all), short, z_BDn=z_BDl, y_BDn=y_BDl)
    kept = Kept(p_BCl if policy.keep_projections else None, y_BDl if policy.keep_convolution else None, groups)
    del p_BCl, u_BDl, y_BDl
    out_weight = weights.out_weight.to(call.compute_dtype).t()
    out_BlD = empty_like(r_BlD)
    for tile in project.tiles:
        mixed_BnD = product_to_tokens(z_BDl[columns(tile)], out_weight)
        dropped = dropped_of(call, layer, dropout, tile.rows, tile.first)
        add_dropped(r_BlD[tile.here], mixed_BnD, weights.out_bias, dropped, out_BlD[tile.here])
        del mixed_BnD
    return out_BlD, kept


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
    """As `model.operator.operator_backward`: the gradient of r overwrites `dout`."""
    r_BlD = r_BlD.contiguous()
    B, l, D = r_BlD.shape
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    din_weight, dout_weight = torch.zeros_like(weights.in_weight), torch.zeros_like(weights.out_weight)
    dskip = torch.zeros_like(weights.skip)
    project = _Projection(r_BlD, weights, call)
    out_weight = weights.out_weight.to(call.compute_dtype)

    def made(tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p of a tile; gradients of the out projection's output (B, n, D) and input (B, D, n); the sum of the first of them."""
        dropped = dropped_of(call, layer, dropout, tile.rows, tile.first)
        dmixed_BnD, sum_D = dropped_gradient(dout_BlD[tile.here], dropped, call.compute_dtype)
        dz_BDn = product_to_channels(out_weight.t(), dmixed_BnD)
        p_BCn = project(tile) if kept.projected_BCm is None else kept.projected_BCm
        return p_BCn, dmixed_BnD, dz_BDn, sum_D

    moved = call.moved_dtype(r_BlD.device)
    u_BDl = None if kept.groups else empty((B, D, l), r_BlD.device, moved)
    dy_BDl = empty((B, D, l), r_BlD.device, moved)
    holds = len(project.tiles) == 1 or call.policy.hold_projections
    held: tuple[Tensor, Tensor, Tensor] | None = None
    dout_bias: Tensor | None = None
    for tile in [project.all] if holds else project.tiles_with_the_first_last():
        p_BCn, dmixed_BnD, dz_BDn, sum_D = made(tile)
        dout_bias = sum_D if dout_bias is None else dout_bias.add_(sum_D)
        wanted = {"u_BDn": None if u_BDl is None else u_BDl[columns(tile)], "dy_BDn": dy_BDl[columns(tile)]}
        gates(p_BCn, project.left(tile), short, dz_BDn=dz_BDn, **wanted)
        if holds:
            held = p_BCn, dmixed_BnD, dz_BDn
        del p_BCn, dmixed_BnD, dz_BDn, wanted  # neither beside the next tile's nor beside the transforms

    through = kept.groups, kept.y_BDl
    y_BDl, du_BDl = convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, dskip, slot, call, *through)

    def of_tile(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        if held is None:
            return made(tile)[:3]
        p_BCl, dmixed_BlD, dz_BDl = held
        return p_BCl[columns(tile)], dmixed_BlD[tile.here], dz_BDl[columns(tile)]

    right_BC2 = after_BC2 = None
    if not is_whole(call):
        first = Tile(slice(0, B), 0, HALO)
        p_BC2, _, dz_BD2 = of_tile(first)
        given = dz_BD2, y_BDl[columns(first)], du_BDl[columns(first)]
        right_BC2 = call.layout.exchange.from_right(_head(p_BC2, project.left(first), short, *given)).wait()
    sums: list[Tensor] = []
    for tile in reversed(project.tiles):  # a token's projection is used by the two after it
        if tile.last == l:
            after_BC2 = None if right_BC2 is None else right_BC2[tile.rows]
        p_BCn, dmixed_BnD, dz_BDn = of_tile(tile)
        of_gates = dz_BDn, y_BDl[columns(tile)], du_BDl[columns(tile)], after_BC2
        dp_BCn, z_BDn, after_BC2, *found = gates_backward(
            p_BCn, project.left(tile), short, *of_gates, with_z=True, with_head=tile.first > 0
        )
        del p_BCn, dz_BDn, of_gates
        assert z_BDn is not None
        add_product(dout_weight, dmixed_BnD.mT, z_BDn.mT)
        del dmixed_BnD, z_BDn
        norms = weights.norm_weight, weights.norm_bias, call.compute_dtype
        add_product(din_weight, dp_BCn, norm(r_BlD[tile.here], *norms))
        dx_BnD = product_to_tokens(dp_BCn, project.in_weight)
        del dp_BCn
        dout_BnD = dout_BlD[tile.here]
        found += norm_backward(dx_BnD, r_BlD[tile.here], weights.norm_weight, dout_BnD, dout_BnD)
        del dx_BnD  # not beside those of the next tile
        sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
    din_bias, dshort_weight, dshort_bias, *dnorm = sums
    assert dout_bias is not None
    of_products = din_weight, din_bias, dshort_weight, dshort_bias, dskip, dout_weight, dout_bias
    return dout_BlD, OperatorWeights(dnorm[0], dnorm[1], *of_products)


def dropped_of(
    call: ForwardPass, layer: int, probability: float, rows: slice = slice(None), first: int = 0
) -> Dropped | None:
    """The dropout of tokens from `first` on, as `ForwardPass.drop` does it; None where nothing is dropped."""
    if call.dropout is None or probability == 0.0:
        return None
    return Dropped.of(call.dropout.of(rows), probability, layer, call.layout.offset + first)


class _Projection:
    """p of tiles of tokens, without its bias, and of the two before them; what the left neighbour has is asked for at once.

    A policy that keeps projections keeps them all in one piece.
    """

    def __init__(self, r_BlD: Tensor, weights: OperatorWeights, call: ForwardPass):
        B, l, D = r_BlD.shape
        self._r_BlD, self._weights, self._call = r_BlD, weights, call
        self.in_weight = weights.in_weight.to(call.compute_dtype)
        self._left_BC2: Tensor | None = None
        self.all = Tile(slice(0, B), 0, l)
        widest = 4 * D * call.pieces(r_BlD.device, AT_WORK_IN_KERNELS)
        self.tiles = [self.all] if call.policy.keep_projections else list(tiles(B, l, widest, r_BlD.device))
        self._halo = None
        if not is_whole(call):
            tail_B2D = r_BlD.new_zeros((B, HALO, D))
            tail_B2D[:, -l:] = r_BlD[:, -HALO:]
            self._halo = call.layout.exchange.from_left(tail_B2D)

    def tiles_with_the_first_last(self) -> list[Tile]:
        """The tiles that need the neighbour's tokens are done when these have had time to arrive."""
        return sorted(self.tiles, key=lambda tile: tile.first == 0)

    def __call__(self, tile: Tile) -> Tensor:
        """(B, C, n), in the compute dtype."""
        return self._of(self._r_BlD[tile.here])

    def left(self, tile: Tile) -> Tensor | None:
        """(B, C, 2); None before the first token of a sequence."""
        if tile.first:
            return self._of(self._r_BlD[tile.rows, tile.first - HALO : tile.first])
        halo_B2D = None if self._halo is None else self._halo.wait()
        if halo_B2D is None or self._call.layout.offset == 0:
            return None
        if self._left_BC2 is None:
            self._left_BC2 = self._of(halo_B2D)
        return self._left_BC2[tile.rows]

    def _of(self, r_BnD: Tensor) -> Tensor:
        weights = self._weights
        x_BnD = norm(r_BnD, weights.norm_weight, weights.norm_bias, self._call.compute_dtype)
        return product_to_channels(self.in_weight, x_BnD)


def is_whole(call: ForwardPass) -> bool:
    """Whether no token of the sequences is elsewhere."""
    return call.layout.exchange.group is None and call.layout.offset == 0


def _head(
    p_BC2: Tensor, left_BC2: Tensor | None, short: ShortWeights, dz_BD2: Tensor, y_BD2: Tensor, du_BD2: Tensor
) -> Tensor:
    """(B, C, 2): the gradient at the short filter's output of a tile's first two tokens."""
    p_BC2 = p_BC2.float() + short.in_bias_C.unsqueeze(1)
    before_BC2 = p_BC2.new_zeros((*p_BC2.shape[:2], HALO))
    if left_BC2 is not None:
        before_BC2 = left_BC2.float() + short.in_bias_C.unsqueeze(1)
    _, x1, v = short_convolution(torch.cat((before_BC2, p_BC2), dim=-1), short.weight_C13, short.bias_C).chunk(3, 1)
    dz, y, du = (x.float() for x in (dz_BD2, y_BD2, du_BD2))
    return torch.cat((dz * y, du * v, du * x1), dim=1)
