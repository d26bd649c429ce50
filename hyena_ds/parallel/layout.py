"""Which tokens a rank holds, and how it exchanges them: the one value through which the model knows of other ranks.

A `Layout` is passed to every forward; no module stores it, so one engine serves every context stage.

B batch, D width, L context length, P sequence-parallel size, l = L / P, d = D / P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from hyena_ds.parallel.collectives import channels_to_tokens, shift_right, tokens_to_channels
from hyena_ds.parallel.topology import Topology


@dataclass(frozen=True)
class Exchange:
    """How activations move between token layout and channel layout. Without a group it only transposes."""

    group: dist.ProcessGroup | None = None

    def to_channels(self, x_BlD: Tensor) -> Tensor:
        """(B, l, D) -> (B, d, L)."""
        return x_BlD.transpose(1, 2) if self.group is None else tokens_to_channels(x_BlD, self.group)

    def to_tokens(self, y_BdL: Tensor) -> Tensor:
        """(B, d, L) -> (B, l, D)."""
        return y_BdL.transpose(1, 2) if self.group is None else channels_to_tokens(y_BdL, self.group)

    def halo(self, x_BlD: Tensor, rows: int) -> Tensor:
        """The left neighbour's last `rows` tokens (B, rows, D); zeros before the first token of the sequence."""
        tail_BhD = x_BlD[:, -rows:]
        return tail_BhD.new_zeros(tail_BhD.shape) if self.group is None else shift_right(tail_BhD, self.group)


@dataclass(frozen=True)
class Layout:
    """The slice of every sequence that this rank holds: tokens [offset, offset + local_length) of context_length."""

    context_length: int
    offset: int
    local_length: int
    exchange: Exchange

    @classmethod
    def whole(cls, context_length: int) -> Layout:
        """All tokens on this rank."""
        return cls(context_length, 0, context_length, Exchange())

    @classmethod
    def slice_of(
        cls, context_length: int, topology: Topology, rank: int, groups: dict[int, dist.ProcessGroup]
    ) -> Layout:
        """The slice of `rank` in a grid; `groups` from `topology.create_groups`."""
        local_length = context_length // topology.sequence_parallel
        exchange = Exchange(groups.get(topology.sequence_parallel))
        return cls(context_length, topology.index(rank) * local_length, local_length, exchange)
