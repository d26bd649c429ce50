"""Sequence ranks as threads of one process, each with streams of its own: what several cards would do, on a single one.

    python -m bench.card.ranks      (under compute-sanitizer: memory that one stream frees while another reads it)

An exchange is a copy on a side stream, as NCCL's are: what is used before it arrived, or overwritten before it left, gives
other gradients than one rank has.

P ranks, B batch, L context length, l = L / P.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from bench.card.rows import CARD, DEVICE, relative_norm
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.parallel import layout as layout_module
from hyena_ds.parallel.collectives import Pending
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology
from hyena_ds.tasks.next_token import NextToken

_L = 512
_CONFIG = ModelConfig(width=32, layers=2, maximum_context=_L, embedding_dropout=0.0)
_BUILDING = threading.Lock()  # the generator of random numbers is the process's


class Meeting:
    """Where P threads exchange tensors."""

    def __init__(self, size: int):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.boxes: list[Any] = [None] * size
        self.streams = [torch.cuda.Stream() for _ in range(size)] if CARD else []


@dataclass(frozen=True)
class Group:
    """A thread's view of the others, in the place of a process group."""

    meeting: Meeting
    rank: int

    def start(self, sent: torch.Tensor, out: torch.Tensor, fill: Callable[[list[torch.Tensor]], None]) -> Pending:
        """Hand `sent` over, and fill `out` from what the others sent, on this rank's side stream."""
        meeting = self.meeting
        ready = torch.cuda.Event() if CARD else None
        if ready is not None:
            ready.record()
        meeting.boxes[self.rank] = (sent, ready)
        meeting.barrier.wait()
        arrived = list(meeting.boxes)
        meeting.barrier.wait()
        tensors = [tensor for tensor, _ in arrived]
        if not CARD:
            fill(tensors)
            return Pending(out, sent, _Arrived(None, tensors))
        side = meeting.streams[self.rank]
        with torch.cuda.stream(side):
            for _, event in arrived:
                side.wait_event(event)
            fill(tensors)
            done = torch.cuda.Event()
            done.record(side)
        return Pending(out, sent, _Arrived(done, tensors))


@dataclass
class _Arrived:
    done: torch.cuda.Event | None
    held: list[torch.Tensor]

    def wait(self) -> None:
        if self.done is not None:
            torch.cuda.current_stream().wait_event(self.done)


class _Dist:
    """Stands where layout.py has torch.distributed."""

    @staticmethod
    def get_world_size(group: Group) -> int:
        return group.meeting.size

    @staticmethod
    def get_rank(group: Group) -> int:
        return group.rank


def _all_to_all(
    pieces_P: torch.Tensor, group: Group, traffic: object = None, dtype: torch.dtype | None = None
) -> Pending:
    out = torch.empty_like(pieces_P, dtype=dtype, memory_format=torch.contiguous_format)
    return _in_place(pieces_P.to(out.dtype), out, group)


def _in_place(sent_P: torch.Tensor, out: torch.Tensor, group: Group, traffic: object = None) -> Pending:
    """NCCL is done with what it sends when the sender has waited; here others may read it later: they read a copy."""
    sent = sent_P.clone(memory_format=torch.contiguous_format)

    def fill(arrived: list[torch.Tensor]) -> None:
        for source, tensor in enumerate(arrived):
            out[source].copy_(tensor[group.rank])

    return group.start(sent, out, fill)


def _shift(rows_B: torch.Tensor, group: Group, step: int, traffic: object = None) -> Pending:
    sent = rows_B.clone(memory_format=torch.contiguous_format)
    out = torch.zeros_like(sent)
    source = group.rank - step

    def fill(arrived: list[torch.Tensor]) -> None:
        if 0 <= source < group.meeting.size:
            out.copy_(arrived[source])

    return group.start(sent, out, fill)


def beside_one_rank(size: int, kernels: Kernels | None = None) -> str:
    """Relative errors of loss and gradients of `size` ranks beside one with the portable code, under every activation policy."""
    ids_BL = torch.randint(7, 11, (2, _L + 1), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = []
    stand_ins = {
        "dist": _Dist, "start_all_to_all": _all_to_all, "start_in_place": _in_place, "start_shift": _shift,
    }  # fmt: skip
    for policy in POLICIES:
        with mock.patch.multiple(layout_module, **stand_ins):
            parts = _all_ranks(size, policy, ids_BL, kernels)
        wanted_loss, wanted = _gradients(Layout.whole(_L), policy, ids_BL)
        loss = sum(part[0] for part in parts)
        gradients = torch.stack([part[1] for part in parts]).sum(0)
        found.append(f"{policy} {abs(loss - wanted_loss) / wanted_loss:.0e} {relative_norm(gradients, wanted):.0e}")
    return "; ".join(found)


def _all_ranks(
    size: int, policy: str, ids_BL: torch.Tensor, kernels: Kernels | None
) -> list[tuple[float, torch.Tensor]]:
    meeting = Meeting(size)
    answers: list[Any] = [None] * size

    def work(rank: int) -> None:
        groups: Any = {size: Group(meeting, rank)}
        try:
            with torch.cuda.stream(torch.cuda.Stream()) if CARD else threading.Lock():
                layout = Layout.slice_of(_L, Topology(1, size), rank, groups)
                answers[rank] = _gradients(layout, policy, ids_BL, kernels)
        except BaseException as error:
            meeting.barrier.abort()
            answers[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])
    return answers


def _gradients(
    layout: Layout, policy: str, ids_BL: torch.Tensor, kernels: Kernels | None = None
) -> tuple[float, torch.Tensor]:
    with _BUILDING:
        objective = NextToken(build_model(_CONFIG, 1).to(DEVICE))
        if CARD:
            torch.cuda.synchronize()
    first, last = layout.offset, layout.offset + layout.local_length
    inputs_Bl, targets_Bl = ids_BL[:, first:last].contiguous(), ids_BL[:, first + 1 : last + 1].contiguous()
    call = ForwardPass(layout, policy=POLICIES[policy], kernels=kernels)
    loss, _ = objective.loss(inputs_Bl, targets_Bl, call)
    with torch.autograd.set_multithreading_enabled(False):
        loss.backward()
    if CARD:
        torch.cuda.synchronize()
    gradients = [parameter.grad for parameter in objective.parameters()]
    return float(loss.detach()), torch.cat([g.flatten().double() for g in gradients if g is not None])


if __name__ == "__main__":
    print("4 ranks as threads:", beside_one_rank(4))
