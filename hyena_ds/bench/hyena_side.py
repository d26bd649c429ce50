"""This trainer's bare step: model, loss, backward, sum of gradients and AdamW, without an engine around it.

Where the sequence is cut, loss and gradients are first compared with those of the whole sequence in one process.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import hyena_ds.model.block as block_module
from hyena_ds.bench.case import SEED, Case
from hyena_ds.bench.parts import Seconds, seconds_by_part
from hyena_ds.bench.side import StepSide, Stopwatch
from hyena_ds.bench.values import check_gradients, check_loss
from hyena_ds.model.backbone import build_model
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.devices import Compute, is_accelerated
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.tasks.next_token import NextToken


class HyenaSide(StepSide):
    """One rank, with its slice of the sequence."""

    def __init__(self, compute: Compute, case: Case):
        model = build_model(case.config, SEED)
        super().__init__(compute, case, model)
        self.objective = NextToken(model)
        self.traffic = Traffic()
        self.bytes_forward = self.bytes_backward = 0
        self.kernels: Kernels | None = None
        timed = ("evaluate_filter", "filter_gradients")
        if case.kernels == "native":
            from hyena_ds.model.native_kernels import NATIVE

            own = SimpleNamespace(**{name: getattr(NATIVE, name) for name in timed})
            self.filter_clock = Stopwatch(own, *timed)
            self.kernels = replace(NATIVE, **vars(own))
        else:
            self.filter_clock = Stopwatch(block_module, *timed)
        self.groups = create_groups([case.sequence_parallel], compute.rank, compute.ranks)
        self.dtype = getattr(torch, case.precision)

    def layout(self, length: int) -> Layout:
        """This rank's slice of `length` tokens."""
        if self.compute.ranks == 1:
            return Layout.whole(length)
        topology = Topology(1, self.case.sequence_parallel)
        return Layout.slice_of(length, topology, self.compute.rank, self.groups, self.traffic)

    def local_batch(self, layout: Layout, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, l) of a micro step on this rank."""
        ids_BL, targets_BL = self.micro_batch(layout.context_length, number)
        return ids_BL[:, layout.tokens].contiguous(), targets_BL[:, layout.tokens].contiguous()

    def passes(self, length: int, accumulation: int) -> float:
        """Forward and backward of all micro steps over `length` tokens; this rank's part of the mean loss. Collective."""
        self.bytes_forward = self.bytes_backward = 0
        self.filter_clock.take()
        return self._passes(self.layout(length), accumulation, self.dtype)

    def _passes(self, layout: Layout, accumulation: int, dtype: torch.dtype) -> float:
        case = self.case
        filters = FilterCache(accumulation)
        total = torch.zeros((), device=self.compute.device)
        for number in range(accumulation):
            filters.begin(number)
            call = ForwardPass(layout, None, filters, case.activation_policy, dtype, kernels=self.kernels)
            sent = self.traffic.bytes_sent
            loss_sum, _ = self.objective.loss(*self.local_batch(layout, number), call)
            between = self.traffic.bytes_sent
            loss = loss_sum / (case.batch * accumulation * layout.context_length)
            loss.backward()
            total += loss.detach()
            self.bytes_forward += between - sent
            self.bytes_backward += self.traffic.bytes_sent - between
        filters.close()
        return float(total)

    def extra(self) -> dict[str, Any]:
        """Bytes that the last passes sent forward and backward, and seconds of the filter, for the side's row."""
        return {
            "bytes_forward": self.bytes_forward,
            "bytes_backward": self.bytes_backward,
            "filter_seconds": self.filter_seconds(),
        }

    def parts(self) -> Seconds:
        """Where the seconds of one more step go, which is not timed. Collective."""
        return seconds_by_part(lambda: self.whole_step(self.case.context_length), lambda: self.traffic.seconds_waited)

    def filter_seconds(self) -> float | None:
        """Seconds of the last step's filter; an accelerator runs behind the clock, so there it is not known."""
        seconds = self.filter_clock.take()
        return None if is_accelerated(self.compute) else seconds

    def check(self) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients at the checked length, which have to be those of the whole sequence. Collective."""
        length = self.case.checked_length
        whole = self._values(Layout.whole(length))
        if self.compute.ranks > 1:
            how = f"the sequence cut over {self.compute.ranks} ranks"
            loss, gradients = self._values(self.layout(length))
            check_loss(loss, whole[0], how)
            check_gradients(gradients, whole[1], how)
        if self.dtype != torch.float32:
            loss = self._passes(Layout.whole(length), 1, self.dtype)
            self.optimizer.zero_grad()
            check_loss(loss, whole[0], f"projections in {self.case.precision}", (self.case.precision,))
        return whole

    def _values(self, layout: Layout) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients of the whole sequence."""
        loss = self._passes(layout, 1, torch.float32)
        if layout.local_length < layout.context_length:
            self.sum_gradients()
            total = torch.tensor(loss, device=self.compute.device, dtype=torch.float64)
            dist.all_reduce(total)
            loss = float(total)
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad()
        return loss, gradients
