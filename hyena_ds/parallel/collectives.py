"""Asynchronous exchanges of a sequence-parallel group: started now, waited for when the result is needed.

    start_all_to_all     every rank sends piece q to rank q
    start_in_place       the same, from where the pieces are to where they belong
    start_shift          every rank's rows go to a neighbour

Buffers, or their pieces, are contiguous: gloo fills a non-contiguous output wrongly, without an error. Every exchange is issued
by the calling thread, so all ranks issue them in the same order.

P sequence-parallel size.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.ops.large import empty, empty_like
from hyena_ds.parallel.waits import Waits


@dataclass
class Traffic:
    """What a rank has sent to others, and how long it waited for them; who wants to know hands one in and reads it."""

    bytes_sent: int = 0
    """By all-to-alls."""
    started: int = 0
    """Exchanges that were started, halos among them."""
    awaited: int = 0
    """Exchanges that were waited for: in the end all."""
    seconds_waited: float = 0.0
    """In which the calling thread could not go on; next to nothing where exchanges are queued on a device."""
    waits: Waits | None = None
    """Where the waits are counted among a rank's others, of a device too."""


@dataclass
class Pending:
    """A tensor on its way. The sent buffer is held until it has arrived."""

    _received: Tensor
    _sent: Tensor | None = None
    _work: Any = None
    traffic: Traffic | None = None
    """Where the exchange and the wait are counted, if they are."""

    def __post_init__(self) -> None:
        if self.traffic is not None:
            self.traffic.started += 1

    def wait(self) -> Tensor:
        """The tensor, once it is here."""
        if self._work is not None:
            began = time.perf_counter()
            with self.traffic.waits.counted() if self.traffic and self.traffic.waits else nullcontext():
                self._work.wait()
            if self.traffic is not None:
                self.traffic.seconds_waited += time.perf_counter() - began
                self.traffic.awaited += 1
            self._work = self._sent = None
        return self._received


def start_all_to_all(
    pieces_P: Tensor, group: dist.ProcessGroup, traffic: Traffic | None = None, dtype: torch.dtype | None = None
) -> Pending:
    """Piece q of the first dim goes to rank q of `group`; piece q of the result came from rank q, in `dtype` if given. Collective."""
    dtype = dtype or pieces_P.dtype
    as_it_is = pieces_P.is_contiguous() and pieces_P.dtype == dtype
    sent = pieces_P if as_it_is else empty(pieces_P.shape, pieces_P.device, dtype).copy_(pieces_P)
    return start_in_place(sent, empty_like(sent), group, traffic)


def start_in_place(
    sent_P: Tensor, received_P: Tensor, group: dist.ProcessGroup, traffic: Traffic | None = None
) -> Pending:
    """Piece q of `sent` goes to rank q of `group`, and piece q of `received` comes from it.

    A piece is one block of memory; the pieces of a tensor need not be. Nothing may write to `sent`, nor use `received`,
    before the wait. Collective.
    """
    if traffic is not None:
        traffic.bytes_sent += sent_P.nbytes // sent_P.shape[0] * (sent_P.shape[0] - 1)
    if sent_P.is_contiguous() and received_P.is_contiguous():
        work = dist.all_to_all_single(received_P, sent_P, group=group, async_op=True)
    else:
        work = dist.all_to_all([*received_P], [*sent_P], group=group, async_op=True)
    return Pending(received_P, sent_P, work, traffic)


def start_shift(rows_B: Tensor, group: dist.ProcessGroup, step: int, traffic: Traffic | None = None) -> Pending:
    """Rows go to the rank `step` places to the right (left if negative); what has no sender is zero. Collective."""
    P, index = dist.get_world_size(group), dist.get_rank(group)
    to, source = index + step, index - step
    batch = rows_B.shape[0]
    sends, receives = 0 <= to < P, 0 <= source < P
    sent = rows_B.contiguous() if sends else rows_B.new_empty((0, *rows_B.shape[1:]))
    received = torch.zeros_like(rows_B, memory_format=torch.contiguous_format)
    work = dist.all_to_all_single(
        received if receives else received[:0],
        sent,
        output_split_sizes=[batch if rank == source else 0 for rank in range(P)],
        input_split_sizes=[batch if rank == to else 0 for rank in range(P)],
        group=group,
        async_op=True,
    )
    return Pending(received, sent, work, traffic)
