"""What every side of `hyena-ds bench step` does, in each of its processes.

    prepare     values at a short length, and the time of a pass, before anything long is started
    step        one optimizer step on random bases: forward, backward, AdamW; timed
    live        one more step, untimed, that records the peak of live tensors

B batch, L context length, l local length.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.bench.case import SEED, Case
from hyena_ds.bench.measure import live_memory_gib, timed
from hyena_ds.parallel.devices import Compute, peak_memory_gib

SCOUTED_LENGTH = 4096
"""A step over more tokens is predicted from a pass over these."""
_LEARNING_RATE = 1e-4
_FIRST_BASE, _LAST_BASE = 7, 11


class StepSide(ABC):
    """One rank of a side. A subclass makes the model and knows how a pass runs."""

    def __init__(self, compute: Compute, case: Case, model: nn.Module):
        self.compute, self.case = compute, case
        self.model = model.to(compute.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE)
        self.memory_at_start_gib = peak_memory_gib(compute)
        self._batches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def passes(self, length: int, accumulation: int) -> float:
        """Forward and backward of all micro steps; this rank's part of the mean loss. Gradients stay local."""

    @abstractmethod
    def check(self) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients (our names) at the checked length in float32; raises WrongValue. Collective."""

    def extra(self) -> dict[str, Any]:
        """What else a step has to tell."""
        return {}

    def prepare(self) -> dict[str, Any]:
        """The checked values, from the first rank, and the seconds of a short pass where a long one follows. Collective."""
        loss, gradients = self.check()
        found: dict[str, Any] = {"loss": loss, "memory_at_start_gib": self.memory_at_start_gib}
        if self.compute.rank == 0:
            found["gradients"] = {
                name: gradient.cpu().numpy().astype(np.float32) for name, gradient in gradients.items()
            }
        if self.case.context_length > SCOUTED_LENGTH:
            self.passes(self.case.checked_length, 1)
            length = SCOUTED_LENGTH // self.case.sequence_parallel * self.case.sequence_parallel
            found["scouted"] = (length, timed(self.compute, lambda: self.passes(length, 1)).wall_seconds)
        self.optimizer.zero_grad()
        return found

    def step(self) -> dict[str, Any]:
        """One optimizer step. Collective."""
        once = timed(self.compute, lambda: self.whole_step(self.case.context_length))
        return {**once.answer(), "loss": once.result, **self.extra()}

    def live(self) -> float:
        """Peak of live tensors of one step, in GiB. Collective."""
        return live_memory_gib(lambda: self.whole_step(self.case.context_length))

    def whole_step(self, length: int) -> float:
        """Passes, reduction over the ranks, update; this rank's part of the mean loss."""
        loss = self.passes(length, self.case.accumulation)
        if self.compute.ranks > 1:
            self.sum_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def sum_gradients(self) -> None:
        """Over all ranks, in one exchange."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def micro_batch(self, length: int, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, L) of a micro step: the same random bases on every side."""
        if (length, number) not in self._batches:
            generator = torch.Generator().manual_seed(SEED + number)
            ids_BL = torch.randint(_FIRST_BASE, _LAST_BASE, (self.case.batch, length + 1), generator=generator)
            ids_BL = ids_BL.to(self.compute.device)
            self._batches[length, number] = ids_BL[:, :-1].contiguous(), ids_BL[:, 1:].contiguous()
        return self._batches[length, number]


class WholeSide(StepSide):
    """One process with the whole sequence, and a model that makes logits of all of it."""

    @abstractmethod
    def logits(self, ids_BL: Tensor) -> Tensor:
        """(B, L, V)."""

    def passes(self, length: int, accumulation: int, precision: str | None = None) -> float:
        """Forward and backward of all micro steps in the case's precision or another; the mean loss."""
        mixed = (precision or self.case.precision) == "bfloat16"
        total = torch.zeros((), device=self.compute.device)
        for number in range(accumulation):
            ids_BL, targets_BL = self.micro_batch(length, number)
            with torch.autocast(self.compute.device.type, torch.bfloat16, enabled=mixed):
                logits_BLV = self.logits(ids_BL)
            loss = F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten()) / accumulation
            loss.backward()
            total += loss.detach()
        return float(total)


class Stopwatch:
    """Seconds spent in functions of a module, which it replaces there."""

    def __init__(self, module: Any, *names: str):
        self.seconds = 0.0
        for name in names:
            setattr(module, name, self._timed(getattr(module, name)))

    def take(self) -> float:
        """What was spent since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return stopped
