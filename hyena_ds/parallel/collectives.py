"""All-to-all between token layout and channel layout, and the halo, as differentiable collectives.

    x_BlD --tokens_to_channels--> x_BdL        every rank gives all channels of its tokens, and gets its channels of
    y_BdL --channels_to_tokens--> y_BlD        all tokens; each is the other's backward

Buffers are contiguous: gloo fills a non-contiguous output wrongly, without an error.

B batch, D width, L context length, P sequence-parallel size, l = L / P, d = D / P.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def tokens_to_channels(x_BlD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, l, D) on each rank -> (B, d, L). Collective over `group`, in forward and in backward."""
    return _TokensToChannels.apply(x_BlD, group)


def channels_to_tokens(y_BdL: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, d, L) on each rank -> (B, l, D). Collective over `group`, in forward and in backward."""
    return _ChannelsToTokens.apply(y_BdL, group)


def shift_right(tail_BhD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's tail goes to its right neighbour; the first rank receives zeros. Collective; backward shifts left."""
    return _ShiftRight.apply(tail_BhD, group)


class _TokensToChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BlD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_channels(x_BlD, group)

    @staticmethod
    def backward(ctx: Any, dx_BdL: Tensor) -> tuple[Tensor, None]:
        return _to_tokens(dx_BdL, ctx.group), None


class _ChannelsToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_BdL: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_tokens(y_BdL, group)

    @staticmethod
    def backward(ctx: Any, dy_BlD: Tensor) -> tuple[Tensor, None]:
        return _to_channels(dy_BlD, ctx.group), None


class _ShiftRight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tail_BhD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _shift(tail_BhD, group, 1)

    @staticmethod
    def backward(ctx: Any, dhalo_BhD: Tensor) -> tuple[Tensor, None]:
        return _shift(dhalo_BhD, ctx.group, -1), None


def _to_channels(x_BlD: Tensor, group: dist.ProcessGroup) -> Tensor:
    B, l, D = x_BlD.shape
    P = dist.get_world_size(group)
    send_PBdl = x_BlD.reshape(B, l, P, D // P).permute(2, 0, 3, 1).contiguous()
    receive_PBdl = torch.empty_like(send_PBdl)
    dist.all_to_all_single(receive_PBdl, send_PBdl, group=group)
    return receive_PBdl.permute(1, 2, 0, 3).reshape(B, D // P, P * l)


def _to_tokens(y_BdL: Tensor, group: dist.ProcessGroup) -> Tensor:
    B, d, L = y_BdL.shape
    P = dist.get_world_size(group)
    send_PBdl = y_BdL.reshape(B, d, P, L // P).permute(2, 0, 1, 3).contiguous()
    receive_PBdl = torch.empty_like(send_PBdl)
    dist.all_to_all_single(receive_PBdl, send_PBdl, group=group)
    return receive_PBdl.permute(1, 3, 0, 2).reshape(B, L // P, P * d)


def _shift(rows_BhD: Tensor, group: dist.ProcessGroup, step: int) -> Tensor:
    """Send to the rank `step` places to the right (left if negative); what has no sender is zero."""
    P, index = dist.get_world_size(group), dist.get_rank(group)
    to, source = index + step, index - step
    batch = rows_BhD.shape[0]
    send = rows_BhD.contiguous() if 0 <= to < P else rows_BhD.new_empty((0, *rows_BhD.shape[1:]))
    receive = rows_BhD.new_empty((batch if 0 <= source < P else 0, *rows_BhD.shape[1:]))
    dist.all_to_all_single(
        receive,
        send,
        output_split_sizes=[batch if rank == source else 0 for rank in range(P)],
        input_split_sizes=[batch if rank == to else 0 for rank in range(P)],
        group=group,
    )
    return receive if receive.shape[0] else torch.zeros_like(rows_BhD)
