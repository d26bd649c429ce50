"""The Hyena operator's half-block by the functions of ops/native; the same two as in operator.py, for a CPU.

    r --norm--> x --product--> p --gates--> u --long convolution--> y --gates with p--> z --product--> + bias + r

What lies between a product and the next is one function, so a tile goes through memory once. Tiles of p stand one after the
other, each as its product left it, in the compute dtype and without bias. Of a whole pass they are held where the policy holds
projections; else forward holds the part that gives x0.

B batch, l local length, D width, C = 3 D, R sequences of a tile, n of their tokens, m = n + 2, t = R n.
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
from hyena_ds.ops.native import functions as native
from hyena_ds.ops.native.functions import ShortWeights
from hyena_ds.ops.short_convolution import HALO, short_convolution
from hyena_ds.ops.tiles import Tile, tiles

_NARROWEST = 256
"""Channels of a float32 tile at least: rows of its tokens lie on the stack."""


def operator_forward(
    r_BlD: Tensor, weights: OperatorWeights, k_dL: Tensor, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Kept]:
    """As `model.operator.operator_forward`."""
    r_BlD = r_BlD.contiguous()
    native.check_floats(r_BlD, *weights)
    B, l, D = r_BlD.shape
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    keeps = call.policy.keep_projections
    project = _Projection(r_BlD, weights, call, 3 * D if keeps else D)
    u_BDl = empty((B, D, l), r_BlD.device, call.moved_dtype(r_BlD.device))
    for tile in sorted(project.tiles, key=lambda tile: tile.first == 0):  # the neighbour's tokens have time to arrive
        native.gates(project.again(tile), short, project.starts(tile), u_BDn=u_BDl[columns(tile)])
    if call.watch is not None:
        call.watch(r_BlD, u_BDl)
    y_BDl, groups = convolution_forward(u_BDl, k_dL, weights.skip, call)
    out_BlD = empty_like(r_BlD)
    out_weight_DD = weights.out_weight.to(call.compute_dtype).t()
    z, mixed = (r_BlD.new_empty(project.widest * D, dtype=call.compute_dtype) for _ in range(2))
    for tile in project.tiles:
        z_Dt, mixed_tD = project.cut(z, tile, D), project.rows(mixed, tile)
        gated = {"y_BDn": y_BDl[columns(tile)], "z_BDn": by_sequence(z_Dt, tile)}
        native.gates(project.held(tile), short, project.starts(tile), **gated)
        torch.mm(z_Dt.t(), out_weight_DD, out=mixed_tD)
        add_to_residual(r_BlD, mixed_tD, weights.out_bias, tile, call, layer, dropout, out_BlD)
    kept = project.all if keeps else None, y_BDl if call.policy.keep_convolution else None, groups
    return out_BlD, Kept(*kept)


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
    native.check_floats(r_BlD, dout_BlD, *weights)
    B, l, D = r_BlD.shape
    dtype, device = call.compute_dtype, r_BlD.device
    gradients = OperatorWeights(*(torch.zeros_like(weight) for weight in weights))
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    of_short = ShortWeights(gradients.in_bias, gradients.short_weight, gradients.short_bias)
    in_weight_CD, out_weight_DD = weights.in_weight.to(dtype), weights.out_weight.to(dtype)
    project = _Projection(r_BlD, weights, call, 3 * D if call.policy.hold_projections else 0, kept.projected_BCm)
    rounded, of_z, z, x = (r_BlD.new_empty(project.widest * D, dtype=dtype) for _ in range(4))
    dp = r_BlD.new_empty(project.widest * 3 * D, dtype=dtype)
    sums = r_BlD.new_empty(3 * D * D, dtype=dtype)

    def output_gradient(tile: Tile, sums_D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gradients of the out projection's output (t, D) and input (D, t)."""
        dropped_tD = call.drop(dout_BlD[tile.here], tile, layer, dropout).reshape(-1, D)
        dmixed_tD = native.output_gradient(dropped_tD, project.rows(rounded, tile), sums_D)
        return dmixed_tD, torch.mm(out_weight_DD.t(), dmixed_tD.t(), out=project.cut(of_z, tile, D))

    moved = call.moved_dtype(device)
    u_BDl = None if kept.groups else empty((B, D, l), device, moved)
    dy_BDl = empty((B, D, l), device, moved)
    for tile in sorted(project.tiles, key=lambda tile: tile.first == 0):
        wanted = {"u_BDn": None if u_BDl is None else u_BDl[columns(tile)], "dy_BDn": dy_BDl[columns(tile)]}
        dz_BDn = by_sequence(output_gradient(tile)[1], tile)
        native.gates(project(tile), short, project.starts(tile), dz_BDn=dz_BDn, **wanted)

    through = kept.groups, kept.y_BDl
    y_BDl, du_BDl = convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, gradients.skip, slot, call, *through)

    right_BC2 = r_BlD.new_zeros((B, 3 * D, HALO))
    if call.layout.exchange.group is not None:
        heads = []
        for tile in (tile for tile in project.tiles if tile.first == 0):
            dz_BDn = by_sequence(output_gradient(tile)[1], tile)
            yn, dun = (of_all[columns(tile)][..., :HALO].float() for of_all in (y_BDl, du_BDl))
            heads.append(_head(project(tile), short, project.starts(tile), dz_BDn[..., :HALO].float(), yn, dun))
        right_BC2 = call.layout.exchange.from_right(torch.cat(heads)).wait().contiguous()
    next_BC2 = right_BC2
    for tile in reversed(project.tiles):  # a token's projection is used by the two after it
        if tile.last == l:
            next_BC2 = right_BC2[tile.rows]
        dmixed_tD, dz_Dt = output_gradient(tile, gradients.out_bias)
        z_Dt, dp_Ct = project.cut(z, tile, D), project.cut(dp, tile, 3 * D)
        made = next_BC2, by_sequence(z_Dt, tile), by_sequence(dp_Ct, tile)
        given = by_sequence(dz_Dt, tile), y_BDl[columns(tile)], du_BDl[columns(tile)]
        native.gates_backward(project(tile), short, project.starts(tile), *given, *made, of_short)
        native.add_product(gradients.out_weight, dmixed_tD.t(), z_Dt.t(), sums)
        x_tD = project.rows(x, tile)
        native.norm(r_BlD[tile.here], weights.norm_weight, weights.norm_bias, x_tD.view_as(r_BlD[tile.here]))
        native.add_product(gradients.in_weight, dp_Ct, x_tD, sums)
        dx_tD = torch.mm(dp_Ct.t(), in_weight_CD, out=x_tD)
        r_tD, dout_tD = r_BlD[tile.here].view(-1, D), dout_BlD[tile.here].view(-1, D)
        of_norm = gradients.norm_weight, gradients.norm_bias
        native.norm_backward(dx_tD, r_tD, weights.norm_weight, dout_tD, dout_tD, *of_norm)
    return dout_BlD, gradients


def add_to_residual(
    r_BlD: Tensor,
    y_tD: Tensor,
    bias_D: Tensor,
    tile: Tile,
    call: ForwardPass,
    layer: int,
    dropout: float,
    out_BlD: Tensor,
) -> None:
    """out = r + dropout(y + bias) of a tile."""
    r_BnD, out_BnD = r_BlD[tile.here], out_BlD[tile.here]
    if call.drops(dropout):
        y_BnD = y_tD.float().add_(bias_D).view(r_BnD.shape)
        torch.add(r_BnD, call.drop(y_BnD, tile, layer, dropout), out=out_BnD)
        return
    native.add_residual(r_BnD, y_tD, bias_D, out_BnD)


def by_sequence(x_Ct: Tensor, tile: Tile) -> Tensor:
    """(channels, sequences x tokens) as (sequences, channels, tokens), in the same memory."""
    R = tile.rows.stop - tile.rows.start
    return x_Ct.view(x_Ct.shape[0], R, -1).transpose(0, 1)


class _Projection:
    """p of the tiles, without its bias, each beginning with the two tokens before it.

    `hold` of its channels are held for the next time, tile by tile; `all` holds them, as it is or as another pass left it.
    """

    def __init__(
        self, r_BlD: Tensor, weights: OperatorWeights, call: ForwardPass, hold: int, all_: Tensor | None = None
    ):
        B, l, D = r_BlD.shape
        dtype = call.compute_dtype
        self.tiles = list(tiles(B, l, max(_NARROWEST, D * dtype.itemsize), r_BlD.device))
        sizes = [(tile.rows.stop - tile.rows.start) * (tile.last - tile.first + HALO) for tile in self.tiles]
        self.widest = max(sizes)
        self._D, self._call, self._r_BlD = D, call, r_BlD
        self._norm, self._in_weight_CD = (weights.norm_weight, weights.norm_bias), weights.in_weight.to(dtype)
        self._places = {}
        first = 0
        for tile, size in zip(self.tiles, sizes, strict=True):
            self._places[tile.rows.start, tile.first] = first, size
            first += size
        self._missing = set() if all_ is not None else set(self._places)
        self._hold = hold if all_ is None else 3 * D
        self.all = empty((first * hold,), r_BlD.device, dtype) if all_ is None and hold else all_
        self._x = r_BlD.new_zeros(self.widest * D, dtype=dtype)
        self._p = r_BlD.new_empty(self.widest * 3 * D, dtype=dtype) if self._hold < 3 * D else None
        self._halo = None
        if all_ is None and call.layout.exchange.group is not None:
            tail_B2D = r_BlD.new_zeros((B, HALO, D))
            tail_B2D[:, -l:] = r_BlD[:, -HALO:]
            self._halo = call.layout.exchange.from_left(tail_B2D)

    def starts(self, tile: Tile) -> bool:
        """Whether there is nothing before the tile."""
        return tile.first == 0 and self._call.layout.offset == 0

    def cut(self, scratch: Tensor, tile: Tile, channels: int) -> Tensor:
        """As much of `scratch` as a tile of so many channels needs, (channels, t)."""
        return scratch[: channels * self._tokens(tile)].view(channels, -1)

    def rows(self, scratch: Tensor, tile: Tile) -> Tensor:
        """The same, (t, D)."""
        return scratch[: self._D * self._tokens(tile)].view(-1, self._D)

    def held(self, tile: Tile) -> Tensor:
        """(R, what is held of C, m)."""
        assert self.all is not None
        first, size = self._places[tile.rows.start, tile.first]
        return by_sequence(self.all[first * self._hold : (first + size) * self._hold].view(self._hold, -1), tile)

    def __call__(self, tile: Tile) -> Tensor:
        """(R, C, m), held or computed."""
        corner = tile.rows.start, tile.first
        if self._hold == 3 * self._D and corner not in self._missing:
            return self.held(tile)
        self._missing.discard(corner)
        return self.again(tile)

    def again(self, tile: Tile) -> Tensor:
        """(R, C, m), computed."""
        first, size = self._places[tile.rows.start, tile.first]
        C = self._in_weight_CD.shape[0]
        x_tD = self._x[: size * self._D].view(size, self._D)
        self._normed(tile, x_tD.view(tile.rows.stop - tile.rows.start, -1, self._D))
        into = self._p[: C * size] if self._p is not None else self.all[first * C : (first + size) * C]  # type: ignore[index]
        p_Ct = torch.mm(self._in_weight_CD, x_tD.t(), out=into.view(C, size))
        if self._p is not None and self.all is not None:
            held = self.all[first * self._hold : (first + size) * self._hold]
            held.copy_(into[: held.numel()])
        return by_sequence(p_Ct, tile)

    def _normed(self, tile: Tile, x_BmD: Tensor) -> None:
        r_BlD = self._r_BlD
        if tile.first:
            native.norm(r_BlD[tile.rows, tile.first - HALO : tile.last], *self._norm, x_BmD)
            return
        native.norm(r_BlD[tile.here], *self._norm, x_BmD[:, HALO:])
        if self._halo is not None:
            native.norm(self._halo.wait()[tile.rows], *self._norm, x_BmD[:, :HALO])
        elif not self.starts(tile):
            x_BmD[:, :HALO] = self._norm[1]  # the norm of zeros

    def _tokens(self, tile: Tile) -> int:
        rows = tile.rows
        return int(rows.stop - rows.start) * (tile.last - tile.first)


def _head(p_BCm: Tensor, short: ShortWeights, starts: bool, dz: Tensor, y: Tensor, du: Tensor) -> Tensor:
    """(R, C, 2): the gradient at the short filter's output of a tile's first two tokens."""
    p_BC4 = p_BCm[..., : 2 * HALO].float() + short.in_bias_C.unsqueeze(1)
    if starts:
        p_BC4[..., :HALO] = 0.0
    _, x1, v = short_convolution(p_BC4, short.weight_C13, short.bias_C).chunk(3, dim=1)
    return torch.cat((dz * y, du * v, du * x1), dim=1)
