"""The projections of the operator's half-block: of a tile of tokens and the two before it, which may be a neighbour's.

    r --norm--> x --projection--> p_BCm            m = n + 2

On a device p is without its bias, which the short filter's takes in.

B batch, l local length, D width, C = 3 D, n tokens of a tile, m = n + 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops import place
from hyena_ds.ops.large import empty
from hyena_ds.ops.layer_norm import Normed, layer_norm
from hyena_ds.ops.products import to_channels
from hyena_ds.ops.short_convolution import HALO
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


class Projection:
    """p of a tile and its two predecessors; those before the first tile come from the left neighbour.

    They are asked for at once, and waited for by the tile that needs them. With `hold` what is computed once is held for
    the next time; `held_BCm` are all projections as another pass held them.
    """

    def __init__(
        self, r_BlD: Tensor, weights: OperatorWeights, call: ForwardPass, hold: bool, held_BCm: Tensor | None = None
    ):
        B, l, D = r_BlD.shape
        self.held_BCm = empty((B, 3 * D, l + HALO), r_BlD.device) if hold and held_BCm is None else held_BCm
        self._r_BlD, self._weights, self._call = r_BlD, weights, call
        self._missing = set() if held_BCm is not None else {_corner(tile) for tile in self._cut(B, l, D)}
        self._in_weight = weights.in_weight.to(call.compute_dtype)
        self._on_device = place.on_device(r_BlD.device)
        self._last: tuple[Tile, Normed] | None = None
        self._halo = None
        if held_BCm is None:  # else no tile needs the neighbour again
            tail_B2D = r_BlD.new_zeros((B, HALO, D))
            tail_B2D[:, -l:] = r_BlD[:, -HALO:]
            self._halo = call.layout.exchange.from_left(tail_B2D)

    def tiles(self) -> list[Tile]:
        """All tiles, from left to right."""
        B, l, D = self._r_BlD.shape
        return list(self._cut(B, l, D))

    def _cut(self, B: int, l: int, D: int) -> Iterator[Tile]:
        return tiles(B, l, 4 * D * self._call.pieces(self._r_BlD.device), self._r_BlD.device)

    def tiles_with_the_first_last(self) -> list[Tile]:
        """The tiles that need the neighbour's tokens are done when these have had time to arrive."""
        return sorted(self.tiles(), key=lambda tile: tile.first == 0)

    def __call__(self, tile: Tile) -> Tensor:
        """(B, C, n + 2), float32."""
        held_BCm = None if self.held_BCm is None else self.held_BCm[columns(tile, HALO)]
        if held_BCm is not None and _corner(tile) not in self._missing:
            return held_BCm
        self._missing.discard(_corner(tile))
        if tile.first:
            r_BmD = self._r_BlD[tile.rows, tile.first - HALO : tile.last]
        else:
            assert self._halo is not None
            r_BmD = torch.cat((self._halo.wait()[tile.rows], self._r_BlD[tile.here]), dim=1)
        x_BmD, mean, rstd = layer_norm(r_BmD, self._weights.norm_weight, self._weights.norm_bias)
        x_BmD = x_BmD.to(self._call.compute_dtype)
        if self._on_device:
            self._last = tile, Normed(x_BmD, mean, rstd)
        p_BCm = to_channels(self._in_weight, x_BmD, held_BCm)
        if not self._on_device:
            p_BCm.add_(self._weights.in_bias.unsqueeze(1))
        if tile.first == 0 and self._call.layout.offset == 0:
            # Before the first token the short filter sees zeros, not projected zeros.
            p_BCm[..., :HALO] = -self._weights.in_bias.unsqueeze(1) if self._on_device else 0.0
        return p_BCm

    def normed(self, tile: Tile, part: Tile) -> Normed:
        """The norm of `part` of a tile and its two predecessors; what the tile's projection has made, if that was the last."""
        if self._last is None or self._last[0] != tile:
            return layer_norm(self._r_BlD[part.here], self._weights.norm_weight, self._weights.norm_bias)
        first = part.first - tile.first + HALO
        x_BnD, mean, rstd = (of_all[:, first : first + part.last - part.first] for of_all in self._last[1])
        return Normed(x_BnD, mean.contiguous(), rstd.contiguous())


def short_filter(weights: OperatorWeights, on_device: bool) -> tuple[Tensor, Tensor]:
    """Taps and bias; on a device the bias of the projection, which is left out there, is part of it."""
    if not on_device:
        return weights.short_weight, weights.short_bias
    return weights.short_weight, weights.short_bias + weights.in_bias * weights.short_weight.sum((1, 2))


def _corner(tile: Tile) -> tuple[int, int]:
    return tile.rows.start, tile.first


def columns(tile: Tile, more: int = 0) -> tuple[slice, slice, slice]:
    """A tile of a channel-major tensor, with `more` columns when the tensor has as many in front."""
    return tile.rows, slice(None), slice(tile.first, tile.last + more)
