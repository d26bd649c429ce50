"""One pass over a reference window, and many sequences that leave it: only their own ends are computed.

    reference_L --pass, with what the operator's two looks to the left saw kept--> SharedPrefix
    ends_BS, each beginning at a token of the window --passes over S tokens, from what was kept--> hidden_BSD

The model is causal: left of where a sequence first differs it is the reference, in every layer. A block looks to the left
twice, and both looks go through its `Exchange`, so an end is an ordinary forward pass whose exchange knows the past: the
halo of the short filter comes from the reference's residual, and of the long convolution, which is linear, only the
difference is transformed:

    y_end = y_reference + causal convolution of (u_end - u_reference) with the filter's first S taps

What is kept of a window of L tokens from token f on, in float32: (L - f) x D x (3 layers + 1) numbers (the residual that
enters each block and the last one's, u and y of each), cut over the ranks of a sequence group as the sequence is. An end
is computed by one rank, whatever the grid: it is short.

B ends, L tokens of the window, l of them here, S tokens of an end, D width, P ranks of the sequence group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.model.block import Block
from hyena_ds.model.filter import evaluate_filter
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.ops.short_convolution import HALO
from hyena_ds.parallel.collectives import Pending, start_all_to_all
from hyena_ds.parallel.layout import ChannelWork, Exchange, Layout
from hyena_ds.predict.predictor import Predictor


class Ends(NamedTuple):
    """Hidden states of some ends, after the final norm, and of the reference at the same tokens.

    The states begin one token before the end, where they are equal: that token predicts the end's first one.
    """

    numbers: list[int]
    """Which of the ends that were asked for these are."""
    at_start: bool
    """Whether they begin at the window's first token: then the first of the states mean nothing."""
    ids_BS: Tensor
    reference_ids_BS: Tensor
    hidden_BmD: Tensor
    """(B, S + 1, D)."""
    reference_BmD: Tensor


class SharedPrefix:
    """The reference window of one strand. All ranks of a sequence group make and use it together: collective."""

    @torch.no_grad()
    def __init__(self, predictor: Predictor, token_ids_L: Tensor, kept_from: int, filters: EndFilters):
        """`kept_from` is the first token at which an end may begin. Raises UserError where the window is too long."""
        self._predictor, self._filters = predictor, filters
        layout = predictor.layout(len(token_ids_L))
        self._group = layout.exchange
        self._width = predictor.model.config.width
        # The tokens before an end are its halo.
        first = max(0, kept_from - HALO)
        self._offset = max(first, layout.offset)
        here = min(self._offset - layout.offset, layout.local_length)
        self._ids_L = token_ids_L.to(predictor.model.backbone.embedding.weight.device)
        self._layers: list[_Kept] = []
        backbone = predictor.model.backbone
        residual_BlD = backbone.embedding(predictor.slice_here(token_ids_L.unsqueeze(0), layout))
        for block in backbone.blocks:
            looks: list[Tensor] = []
            exchange = _Keeping(layout.exchange.group, layout.exchange.traffic, here=here, looks=looks)
            entering_lD = residual_BlD[0, here:].clone()
            residual_BlD = block(residual_BlD, predictor.forward_pass(replace(layout, exchange=exchange)))
            self._layers.append(_Kept(entering_lD, *looks))
        self._last_lD = residual_BlD[0, here:].clone()

    @torch.no_grad()
    def score(self, begins: Sequence[int], ends_BS: Tensor, measure: Callable[[Ends], Tensor], at_once: int) -> Tensor:
        """(B, n) float64 on every rank: what `measure` says, a row of n numbers for each end, of `at_once` at a time and rank.

        An end is the tokens [begin, begin + S) of a sequence that is the reference before `begin`: the begins are all 0 or
        all at least 2, and none before `kept_from`.
        """
        P, B = self._group.size, len(begins)
        numbers = list(range(B)) + [B - 1] * (-B % P)
        rows = []
        each = at_once * P
        for first in range(0, len(numbers), each):
            some = numbers[first : first + each]
            own = some[self._group.index * (len(some) // P) :][: len(some) // P]
            reference_BS = torch.stack([self._ids_L[begins[number] :][: ends_BS.shape[1]] for number in own])
            ends = self._ends([begins[number] for number in some], ends_BS[own], reference_BS, own)
            rows.append(_from_all_ranks(measure(ends).double(), self._group))
        return torch.cat(rows)[:B]

    def _ends(self, begins: Sequence[int], ends_BS: Tensor, reference_ids_BS: Tensor, own: list[int]) -> Ends:
        """This rank's part of the ends that begin there; `ends_BS` are those `own` ones. Collective."""
        backbone = self._predictor.model.backbone
        S = ends_BS.shape[1]
        filters = self._filters.of(S)
        begin = begins[0]  # which one matters only where it is the window's first token
        ends_BS = ends_BS.to(self._ids_L.device)
        residual_BSD = backbone.embedding(ends_BS)
        for block, kept in zip(backbone.blocks, self._layers, strict=True):
            halo_B2D = self._collected(kept.entering_lD, 0, begins, -HALO, 0)
            u_BDS, y_BDS = (self._collected(x_Dl, 1, begins, 0, S) for x_Dl in (kept.u_Dl, kept.y_Dl))
            layout = Layout(S, begin, S, _KnownPast(halo_B2D=halo_B2D, u_BDS=u_BDS, y_BDS=y_BDS))
            residual_BSD = block(residual_BSD, self._predictor.forward_pass(layout, filters))
        reference_BmD = backbone.final_norm(self._collected(self._last_lD, 0, begins, -1, S))
        hidden_BSD = backbone.final_norm(residual_BSD)
        hidden_BmD = torch.cat((reference_BmD[:, :1], hidden_BSD), 1)
        return Ends(own, begin == 0, ends_BS, reference_ids_BS, hidden_BmD, reference_BmD)

    def _collected(self, kept: Tensor, tokens: int, begins: Sequence[int], left: int, right: int) -> Tensor:
        """(B / P, *of kept): tokens [begin + left, begin + right) of what all ranks keep, for the ends of this rank.

        `tokens` is the dim of `kept` that they are. Zeros before the window's first token. Collective.
        """
        shape = list(kept.shape)
        shape[tokens] = right - left
        pieces = kept.new_zeros((len(begins), *shape))
        for piece, begin in zip(pieces, begins, strict=True):
            first = max(begin + left, self._offset)
            last = min(begin + right, self._offset + kept.shape[tokens])
            if first < last:
                found = kept.narrow(tokens, first - self._offset, last - first)
                piece.narrow(tokens, first - begin - left, last - first).copy_(found)
        if self._group.group is None:
            return pieces
        # A token is kept by one rank; the others send zeros.
        return start_all_to_all(pieces.unflatten(0, (self._group.size, -1)), self._group.group).wait().sum(0)


def kept_bytes(config: ModelConfig, tokens: int) -> float:
    """Memory of what is kept of a window from its last so many tokens on, and of their halo, over all ranks."""
    return 4.0 * (tokens + HALO) * config.width * (3 * config.layers + 1)


class EndFilters:
    """The first taps of a model's filters, all channels on every rank: evaluated once for the longest end so far."""

    def __init__(self, predictor: Predictor):
        self._blocks = predictor.model.backbone.blocks
        self._held = HeldFilters()

    def of(self, length: int) -> HeldFilters:
        """The filters of ends of `length` tokens."""
        for block in self._blocks:
            assert isinstance(block, Block)
            k = block.operator.implicit_filter
            slot = self._held.slot(block.number)
            slot.get(lambda k=k: evaluate_filter(k.shape, k.weights(), 0, length, self._held.columns), length, True)  # type: ignore[misc]
        return self._held


class _Kept(NamedTuple):
    """What is kept of one block for the tokens that are here: the residual that enters, the long convolution's input and output."""

    entering_lD: Tensor
    u_Dl: Tensor
    y_Dl: Tensor
    """With the skip term."""


@dataclass(frozen=True)
class _Keeping(Exchange):
    """Keeps what goes into the long convolution and what comes out, of the tokens from `here` on."""

    here: int = 0
    looks: list[Tensor] = field(default_factory=list)

    def through_channels(
        self,
        inputs_BDl: Sequence[Tensor],
        outputs_BDl: Sequence[Tensor],
        work: ChannelWork,
        at_once: int,
        in_pieces: bool = False,
    ) -> None:
        if inputs_BDl and outputs_BDl:  # a filter only comes or only goes
            self.looks.append(inputs_BDl[0][0, :, self.here :].clone())
        super().through_channels(inputs_BDl, outputs_BDl, work, at_once, in_pieces)
        if inputs_BDl and outputs_BDl:
            self.looks.append(outputs_BDl[0][0, :, self.here :].clone())


@dataclass(frozen=True)
class _KnownPast(Exchange):
    """The exchange of ends: their past is the reference's. `work` is linear, so it is done on what differs from it."""

    halo_B2D: Tensor = field(default_factory=lambda: torch.empty(0))
    u_BDS: Tensor = field(default_factory=lambda: torch.empty(0))
    y_BDS: Tensor = field(default_factory=lambda: torch.empty(0))

    def from_left(self, rows_B: Tensor) -> Pending:
        return Pending(self.halo_B2D)

    def through_channels(
        self,
        inputs_BDl: Sequence[Tensor],
        outputs_BDl: Sequence[Tensor],
        work: ChannelWork,
        at_once: int,
        in_pieces: bool = False,
    ) -> None:
        inputs_BDl[0].sub_(self.u_BDS)
        super().through_channels(inputs_BDl, outputs_BDl, work, at_once, in_pieces)
        outputs_BDl[0].add_(self.y_BDS)


def _from_all_ranks(rows_Bn: Tensor, exchange: Exchange) -> Tensor:
    """The rows of all ranks, in their order. Collective."""
    if exchange.group is None:
        return rows_Bn
    sent = rows_Bn.expand(exchange.size, *rows_Bn.shape)
    return start_all_to_all(sent, exchange.group).wait().flatten(0, 1)
