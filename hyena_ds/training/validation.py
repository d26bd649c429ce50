"""Loss on a fixed set of held-out windows, on the training grid.

The last batches are padded with sequences of which nothing is scored, so that every rank runs the same forwards.
Nothing of the stream, the optimizer or a generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.data.loader import MicroBatch, Slice
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
    run: ForwardPass,
    compute: Compute,
    row: int,
    stopping: Callable[[int], bool] = lambda forward: False,
) -> Validated | None:
    """What the task adds up over `samples`; the same on every rank. Collective.

    Before every forward `stopping` is asked with its number; once it says yes, on all ranks, the answer is None.
    """
    total = torch.zeros(2 + len(task.sums), dtype=torch.float64, device=compute.device)
    part = Slice(row, run.layout.offset, run.layout.local_length)
    forwards = -(-len(samples) // (plan.micro_batch_size * plan.data_parallel))
    run = replace(run, dropout=None, filters=HeldFilters())
    for number, micro_batch in enumerate(_micro_batches(task, samples, plan, part, forwards)):
        if stopping(number):
            return None
        micro_batch = micro_batch.to(compute.device)
        loss_sum, sums = engine(micro_batch, run)
        total += torch.cat((loss_sum.double().view(1), sums))
    dist.all_reduce(total)
    loss, scored, *others = total.tolist()
    return Validated(loss / scored, int(scored), tuple(other / scored for other in others))


def _micro_batches(
    task: Task, samples: Sequence[Any], plan: StagePlan, part: Slice, forwards: int
) -> Iterator[MicroBatch]:
    per_forward = plan.micro_batch_size * plan.data_parallel
    padded = [*samples, *[None] * (forwards * per_forward - len(samples))]
    for number in range(forwards):
        numbers, mine = row_samples(padded, plan, part.row, number)
        yield task.read(mine, numbers, plan.config.context_length, part)
