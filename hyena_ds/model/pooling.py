"""One state for a whole sequence, of hidden states that are cut across the ranks of a sequence group.

    hidden_BlD --each rank's part--> part_BD --added up over the group--> pooled_BD, the same on all of its ranks

mean     of all tokens that are no padding
maximum  channel by channel; of equal values the one at the lowest position sends the gradient back
first    the state of the first token
last     the state of the last token that is no padding

The loss of a sequence belongs to the group's first rank. Backward adds up the gradients of all ranks, of which the others
send zeros: each has to call backward on something that hangs on its `pooled_BD`, so that all meet in the same exchange.

B batch, l local length, D width.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyena_ds.parallel.layout import Layout

Pooling = Literal["mean", "maximum", "first", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLS: dict[str, Pooling] = {"mean": "mean", "max": "maximum", "last": "last", "first": "first"}
"""Names that configs and command lines use."""


def pool(
    hidden_BlD: Tensor, pooling: Pooling, layout: Layout, lengths_B: Tensor | None = None, begin: int = 0
) -> Tensor:
    """(B, l, D) -> (B, D). `lengths_B` are tokens of each whole sequence, more than `begin`; None: all. Collective.

    The first `begin` tokens of every sequence are left out, as padding is.
    """
    B, l, _ = hidden_BlD.shape
    if lengths_B is None:
        lengths_B = torch.full((B,), layout.context_length, device=hidden_BlD.device)
    positions_l = torch.arange(layout.offset, layout.offset + l, device=hidden_BlD.device)
    there_Bl1 = ((positions_l >= begin) & (positions_l < lengths_B.unsqueeze(1))).unsqueeze(2)
    if pooling == "mean":
        part_BD = (hidden_BlD * there_Bl1).sum(1) / (lengths_B - begin).unsqueeze(1)
        return _over_sequence(part_BD, layout)
    if pooling == "maximum":
        chosen_BD = _highest(hidden_BlD.detach(), positions_l, there_Bl1, layout)
    else:
        chosen_B = torch.full_like(lengths_B, begin) if pooling == "first" else lengths_B - 1
        chosen_BD = chosen_B.unsqueeze(1).expand(B, hidden_BlD.shape[2])
    here_BD = (chosen_BD >= layout.offset) & (chosen_BD < layout.offset + l)
    index_B1D = torch.where(here_BD, chosen_BD - layout.offset, 0).unsqueeze(1)
    return _over_sequence(hidden_BlD.gather(1, index_B1D).squeeze(1) * here_BD, layout)


def _highest(hidden_BlD: Tensor, positions_l: Tensor, there_Bl1: Tensor, layout: Layout) -> Tensor:
    """The lowest position of the largest value of those that count, channel by channel. Collective."""
    highest_BD = hidden_BlD.masked_fill(~there_Bl1, float("-inf")).amax(1)
    group = layout.exchange.group
    if group is not None:
        dist.all_reduce(highest_BD, dist.ReduceOp.MAX, group=group)
    is_it_BlD = there_Bl1 & (hidden_BlD == highest_BD.unsqueeze(1))
    lowest_BD = torch.where(is_it_BlD, positions_l.view(1, -1, 1), layout.context_length).amin(1)
    if group is not None:
        dist.all_reduce(lowest_BD, dist.ReduceOp.MIN, group=group)
    # Where no value is the largest (NaN is none), the first rank's first token: its gradient is not finite anyway.
    return torch.where(lowest_BD == layout.context_length, 0, lowest_BD)


def _over_sequence(part_BD: Tensor, layout: Layout) -> Tensor:
    pooled_BD: Tensor = _OverSequence.apply(part_BD, layout)  # type: ignore[no-untyped-call, unused-ignore]
    return pooled_BD


class _OverSequence(torch.autograd.Function):
    """The sum of the ranks' parts; backward, of their gradients."""

    @staticmethod
    def forward(ctx: Any, part_BD: Tensor, layout: Layout) -> Tensor:
        ctx.group = layout.exchange.group
        return _summed(part_BD, ctx.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpooled_BD: Tensor) -> tuple[Tensor, None]:
        return _summed(dpooled_BD, ctx.group), None


def _summed(part_BD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return part_BD.clone()
    total_BD = part_BD.contiguous().clone()
    dist.all_reduce(total_BD, group=group)
    return total_BD
