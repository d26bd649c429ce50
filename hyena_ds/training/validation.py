"""Loss on a fixed set of held-out windows, on the training grid.

The last batches are padded with sequences of which nothing is scored, so that every rank runs the same forwards.
Nothing of the stream, the optimizer or a generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.data.loader import Slice
from hyena_ds.data.stream import row_samples
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.task import Task


class Validated(NamedTuple):
    """Over all held-out samples."""

    loss: float
    """Mean of the losses."""
    scored: int
    """How many there were."""
    means: tuple[float, ...]
    """Means of what the task sums beside the losses."""


@torch.no_grad()
def validate(
    engine: deepspeed.DeepSpeedEngine,
    task: Task,
    samples: Sequence[Any],
    plan: StagePlan,
    call: ForwardPass,
    compute: Compute,
    part: Slice,
    stopping: Callable[[int], bool] = lambda forward: False,
) -> Validated | None:
    """What the task adds up over `samples`; the same on every rank. Collective.

    Before every forward `stopping` is asked with its number; once it says yes, on all ranks, the answer is None.
    """
    total = torch.zeros(2 + len(task.sums), dtype=torch.float64, device=compute.device)
    per_forward = plan.micro_batch_size * plan.data_parallel
    forwards = -(-len(samples) // per_forward)
    padded = [*samples, *[None] * (forwards * per_forward - len(samples))]
    call = replace(call, dropout=None, filters=HeldFilters())
    for number in range(forwards):
        if stopping(number):
            return None
        numbers, mine = row_samples(padded, plan, part.row, number)
        micro_batch = task.read(mine, numbers, plan.config.context_length, part).to(compute.device)
        loss_sum, sums = engine(micro_batch, call)
        total += torch.cat((loss_sum.double().view(1), sums))
    dist.all_reduce(total)
    loss, scored, *others = total.tolist()
    return Validated(loss / scored, int(scored), tuple(other / scored for other in others))
