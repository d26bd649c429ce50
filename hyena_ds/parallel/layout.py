"""Which tokens a rank holds, and how it exchanges them: the one value through which the model knows of other ranks.

A `Layout` is passed to every forward; no module stores it, so one engine serves every context stage.

    x_BDl --all-to-all, some channels at a time--> x_BgL --work--> y_BgL --all-to-all--> y_BDl
            (the next channels are on their way while these are worked on)

Pieces of x and y are copied into the buffers of an exchange and out of them; by a kernel, where the exchange is given one, and
then only those that are not sent from where they are, received where they belong or read as they came.

B batch, D width, L context length, P sequence-parallel size, l = L / P, d = D / P, g some of a rank's own d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.ops.large import empty
from hyena_ds.ops.sizes import channels_of_an_exchange
from hyena_ds.parallel.collectives import Pending, Traffic, start_all_to_all, start_in_place, start_shift
from hyena_ds.parallel.topology import Topology

ChannelWork = Callable[..., Sequence[Tensor]]
"""work(channels, *inputs_BgL) -> outputs_BgL; `channels` is a slice of the rank's own d."""
CopyPieces = Callable[[Tensor, Tensor], Tensor]
"""copy(target_PBgl, source_PBgl) -> target, in its own type; tokens of a channel are side by side in both."""


@dataclass(frozen=True)
class Exchange:
    """How activations move between token layout and channel layout. Without a group everything is here already."""

    group: dist.ProcessGroup | None = None
    traffic: Traffic | None = None
    """Where exchanges are counted, if they are."""
    copy_pieces: CopyPieces | None = None
    """The kernel that packs and unpacks; None: PyTorch's copies of whole buffers."""

    @property
    def size(self) -> int:
        """Ranks of the sequence group."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def index(self) -> int:
        """This rank's place in the sequence group, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def own_channels(self, width: int) -> slice:
        """The channels that this rank holds in channel layout."""
        d = width // self.size
        return slice(self.index * d, (self.index + 1) * d)

    def from_left(self, rows_B: Tensor) -> Pending:
        """Start to send `rows_B` to the right neighbour; the result is the left neighbour's, zeros on the first rank."""
        return self._shift(rows_B, 1)

    def from_right(self, rows_B: Tensor) -> Pending:
        """Start to send `rows_B` to the left neighbour; the result is the right neighbour's, zeros on the last rank."""
        return self._shift(rows_B, -1)

    def through_channels(
        self,
        inputs_BDl: Sequence[Tensor],
        outputs_BDl: Sequence[Tensor],
        work: ChannelWork,
        at_once: int,
        in_pieces: bool = False,
    ) -> None:
        """Run `work` on all tokens of `at_once` channels at a time; each output lands in its buffer, in the buffer's type.

        An output may be the same buffer as an input. With `in_pieces` what came from others may be (B, g, P, l), not put
        together; results may be so too. Collective: the exchanges of the next channels and of the last ones are under way while
        these are worked on.
        """
        d = (*inputs_BDl, *outputs_BDl)[0].shape[1] // self.size
        groups = [slice(start, min(start + at_once, d)) for start in range(0, d, at_once)]
        if self.group is None:
            for channels in groups:
                results = work(channels, *(x[:, channels] for x in inputs_BDl))
                for y_BDl, y_BgL in zip(outputs_BDl, results, strict=True):
                    y_BDl[:, channels] = y_BgL
                del results, y_BgL  # not beside those of the next channels
            return
        arriving = [self._start_to_channels(x, groups[0], d) for x in inputs_BDl]
        leaving: list[Pending] = []
        for number, channels in enumerate(groups):
            here = [self._arrived(pending.wait(), in_pieces) for pending in arriving]
            if number + 1 < len(groups):
                arriving = [self._start_to_channels(x, groups[number + 1], d) for x in inputs_BDl]
            results = work(channels, *here)
            buffers = zip(results, outputs_BDl, strict=True)
            sent = [
                self._start(_token_slices(y, self.size), out.dtype, self._pieces(out, channels, d))
                for y, out in buffers
            ]
            del here, results  # not beside those of the next channels
            if number:
                self._land(leaving, outputs_BDl, groups[number - 1], d)
            leaving = sent
        self._land(leaving, outputs_BDl, groups[-1], d)

    def to_channels(self, x_BDl: Tensor) -> Tensor:
        """(B, D, l) -> (B, d, L), without work in between. Collective."""
        if self.group is None:
            return x_BDl
        B, D, l = x_BDl.shape
        y_BdL = empty((B, D // self.size, l * self.size), x_BDl.device, x_BDl.dtype)

        def arrive(channels: slice, x_BgPl: Tensor) -> tuple[()]:
            self._copy(_token_slices(y_BdL[:, channels], self.size), x_BgPl.permute(2, 0, 1, 3))
            return ()

        self.through_channels((x_BDl,), (), arrive, _at_once(y_BdL), in_pieces=True)
        return y_BdL

    def to_tokens(self, y_BdL: Tensor) -> Tensor:
        """(B, d, L) -> (B, D, l), without work in between. Collective."""
        if self.group is None:
            return y_BdL
        B, d, L = y_BdL.shape
        x_BDl = empty((B, d * self.size, L // self.size), y_BdL.device, y_BdL.dtype)
        self.through_channels((), (x_BDl,), lambda channels: (y_BdL[:, channels],), _at_once(y_BdL))
        return x_BDl

    def _shift(self, rows_B: Tensor, step: int) -> Pending:
        if self.group is None:
            return Pending(rows_B.new_zeros(rows_B.shape))
        return start_shift(rows_B, self.group, step, self.traffic)

    def _start_to_channels(self, x_BDl: Tensor, channels: slice, d: int) -> Pending:
        return self._start(self._pieces(x_BDl, channels, d), x_BDl.dtype)

    def _pieces(self, x_BDl: Tensor, channels: slice, d: int) -> Tensor:
        """(P, B, g, l), a view: those of every rank's channels."""
        pieces_PBgl: Tensor = x_BDl.unflatten(1, (self.size, d))[:, :, channels].transpose(0, 1)
        return pieces_PBgl

    def _start(self, pieces_P: Tensor, dtype: torch.dtype, into_P: Tensor | None = None) -> Pending:
        """What arrives is in `into` if the kernel packs and a piece of it is one block of memory."""
        assert self.group is not None
        if self.copy_pieces is None:
            return start_all_to_all(pieces_P, self.group, self.traffic, dtype)
        sent_P, device = pieces_P, pieces_P.device
        if pieces_P.dtype != dtype or not _are_blocks(pieces_P):
            sent_P = self.copy_pieces(empty(pieces_P.shape, device, dtype), pieces_P)
        received_P = into_P if into_P is not None and _are_blocks(into_P) else empty(pieces_P.shape, device, dtype)
        return start_in_place(sent_P, received_P, self.group, self.traffic)

    def _arrived(self, received_PBgl: Tensor, in_pieces: bool) -> Tensor:
        """(B, g, L), or (B, g, P, l), a view, where `in_pieces`."""
        P, B, g, l = received_PBgl.shape
        if in_pieces:
            return received_PBgl.permute(1, 2, 0, 3)
        whole_BgL = empty((B, g, P * l), received_PBgl.device, received_PBgl.dtype)
        self._copy(_token_slices(whole_BgL, P), received_PBgl)
        return whole_BgL

    def _land(self, leaving: list[Pending], outputs_BDl: Sequence[Tensor], channels: slice, d: int) -> None:
        for pending, y_BDl in zip(leaving, outputs_BDl, strict=True):
            received_P, pieces_P = pending.wait(), self._pieces(y_BDl, channels, d)
            if self.copy_pieces is None or not _are_blocks(pieces_P):
                self._copy(pieces_P, received_P)

    def _copy(self, target_P: Tensor, source_P: Tensor) -> None:
        (self.copy_pieces or Tensor.copy_)(target_P, source_P)


def _at_once(y_BdL: Tensor) -> int:
    B, d, L = y_BdL.shape
    return channels_of_an_exchange(B, d, L, y_BdL.device.type == "cpu")


def _token_slices(y_BgL: Tensor, size: int) -> Tensor:
    """(P, B, g, l), a view; of what is in pieces already too."""
    y_BgPl = y_BgL if y_BgL.dim() == 4 else y_BgL.unflatten(2, (size, y_BgL.shape[2] // size))
    return y_BgPl.permute(2, 0, 1, 3)


def _are_blocks(pieces_P: Tensor) -> bool:
    return pieces_P[0].is_contiguous()


@dataclass(frozen=True)
class Layout:
    """The slice of every sequence that this rank holds: tokens [offset, offset + local_length) of context_length."""

    context_length: int
    offset: int
    local_length: int
    exchange: Exchange

    @property
    def tokens(self) -> slice:
        """The rank's tokens, of a whole sequence."""
        return slice(self.offset, self.offset + self.local_length)

    def cut_to(self, local_length: int) -> Layout:
        """The layout of sequences of which every rank of the group holds so many tokens."""
        if local_length == self.local_length:
            return self
        exchange = self.exchange
        return Layout(exchange.size * local_length, exchange.index * local_length, local_length, exchange)

    @classmethod
    def whole(cls, context_length: int) -> Layout:
        """All tokens on this rank."""
        return cls(context_length, 0, context_length, Exchange())

    @classmethod
    def slice_of(
        cls,
        context_length: int,
        topology: Topology,
        rank: int,
        groups: dict[int, dist.ProcessGroup],
        traffic: Traffic | None = None,
    ) -> Layout:
        """The slice of `rank` in a grid; `groups` from `topology.create_groups`."""
        local_length = context_length // topology.sequence_parallel
        exchange = Exchange(groups.get(topology.sequence_parallel), traffic)
        return cls(context_length, topology.index(rank) * local_length, local_length, exchange)
