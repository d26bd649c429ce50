"""One optimizer step.

    loss of a micro step = sum of this rank's losses x ranks / losses of the whole step

The engine averages gradients over all ranks, so the reduced gradient is exactly that of (sum of losses) / (their number)
over the global batch, whatever the grid, the accumulation, and how unevenly they fall: of tokens, of which some are
ignored, or of whole sequences, whose loss belongs to one rank of a sequence group (tasks/task.py).

A loss that is not finite is back-propagated as NaN: whether the reduced gradients are finite, which all ranks see alike,
then decides alone about the update. Without one the parameters, the moments and the engine are as if the batch had never
been there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.data.loader import StepBatch
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.devices import Compute, send


@dataclass(frozen=True)
class StepResult:
    """What came of the whole global batch; the same on every rank."""

    loss: float
    """Mean of the losses that were added up."""
    gradient_norm: float
    """Before clipping."""
    votes: tuple[float, ...] = ()
    """The sums over all ranks of what each handed in."""
    means: tuple[float, ...] = ()
    """Means of what the task sums beside the losses."""
    gathered: tuple[float, ...] = ()
    """The sums of what each rank's `Watcher` handed in."""

    @property
    def skipped(self) -> bool:
        """Whether the update was left out, because the loss or the gradient norm was not finite."""
        return not math.isfinite(self.gradient_norm)


class Watcher(Protocol):
    """Who looks at a step from within, and hands in numbers that come back as `StepResult.gathered`."""

    def before_update(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """The gradients are reduced, the parameters still those of the passes."""

    def handed_in(self) -> Tensor | None:
        """Float64 on the device, of the same size on every rank; asked right before the exchange at the step's end."""


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batch: StepBatch,
    call: ForwardPass,
    compute: Compute,
    seed: int,
    rate: float,
    votes: Callable[[], Sequence[float]] = tuple,
    mark: Callable[[str], None] = lambda doing: None,
    watcher: Watcher | None = None,
) -> StepResult:
    """Run the micro steps of `batch` and update the parameters with learning rate `rate`. Collective.

    `call` says how the stage's passes run; the step gives them their dropout keys, and a filter cache that it closes
    before the parameters change. `votes` is asked after the update; its numbers are added up over all ranks, in the
    same exchange as the loss: what ranks have to agree on after every step costs none of its own. So are the numbers of
    a `watcher`. `mark` is told what comes next, for the watchdog.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
    totals: Tensor | None = None  # of losses, then what the task sums
    filters = FilterCache(len(batch.micro_batches))
    for number, micro_batch in enumerate(batch.micro_batches):
        micro_batch = micro_batch.to(compute.device)
        filters.begin(number)
        mark(f"forward of micro step {number + 1}")
        layout = call.layout.cut_to(micro_batch.token_ids_Bl.shape[1])
        key = DropoutKey(seed, batch.step, micro_batch.samples_B)
        this = replace(call, layout=layout, dropout=key, filters=filters)
        micro_loss, micro_sums, *_ = engine(micro_batch, this)
        mark(f"backward of micro step {number + 1}")
        # The engine's own test for the boundary misfires when accumulation changes between stages.
        engine.set_gradient_accumulation_boundary(filters.last)
        engine.backward(scaled_loss(micro_loss, compute.ranks / batch.scored), scale_wrt_gas=False)
        found = torch.cat((micro_loss.detach().double().view(1), micro_sums[1:]))
        totals = found if totals is None else totals + found
        if filters.last:
            filters.close()
            norm = _unsharded_norm(engine) if engine.zero_optimization_stage() == 0 else None
            if norm is not None and not math.isfinite(norm):
                # ZeRO 1 to 3 leave such an update out themselves; without ZeRO the engine does not look.
                engine.zero_grad()
                engine.set_gradient_accumulation_boundary(False)
            if watcher is not None:
                watcher.before_update(engine)
            mark("update")
        engine.step()
    assert totals is not None
    found_norm = engine.get_global_grad_norm() if norm is None else norm
    asked = votes()
    handed_in = watcher.handed_in() if watcher is not None else None
    norm, sums = _read_at_the_boundary(totals, asked, handed_in, found_norm, compute)
    ends = len(totals), len(totals) + len(asked)
    means = tuple(total / batch.scored for total in sums[: ends[0]])
    return StepResult(means[0], norm, tuple(sums[ends[0] : ends[1]]), means[1:], tuple(sums[ends[1] :]))


def _read_at_the_boundary(
    totals: Tensor, votes: Sequence[float], handed_in: Tensor | None, norm: Tensor | float, compute: Compute
) -> tuple[float, list[float]]:
    """(gradient norm, sums over all ranks of all else): the only values that the host waits for in a step.

    Without ZeRO it has waited for the norm before the update. Collective.
    """
    votes_there = send(torch.tensor([*votes], dtype=torch.float64), compute.device)
    everywhere = torch.cat((totals, votes_there, *([] if handed_in is None else [handed_in])))
    dist.all_reduce(everywhere)
    if not isinstance(norm, Tensor):
        return float(norm), everywhere.tolist()
    *sums, found = torch.cat((everywhere, norm.detach().to(everywhere).view(1))).tolist()
    return found, sums


def scaled_loss(loss: Tensor, scale: float) -> Tensor:
    """The loss to back-propagate; every gradient of a loss that is not finite is NaN."""
    return loss * torch.where(loss.detach().isfinite(), scale, math.nan)


def _unsharded_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """Without ZeRO the engine keeps no norm; the reduced gradients are whole on every rank."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
