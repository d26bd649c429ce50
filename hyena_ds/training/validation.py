"""Loss on a fixed set of held-out windows, on the training grid; and every prediction, where the task asks for them.

The last batches are padded with sequences of which nothing is scored, so that every rank runs the same forwards.
Nothing of the stream, the optimizer or a generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.data.loader import Slice
from hyena_ds.data.stream import row_samples
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.task import Task


class Validated(NamedTuple):
    """Over all held-out samples."""

    loss: float
    """Mean of the losses."""
    scored: int
    """How many there were."""
    means: tuple[float, ...]
    """Means of what the task sums beside the losses."""
    predictions: list[NDArray[np.float32]]
    """One array a sample, in the order of the samples; empty where the objective predicts nothing."""


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
    predictions: list[NDArray[np.float32]] = []
    per_forward = plan.micro_batch_size * plan.data_parallel
    forwards = -(-len(samples) // per_forward)
    padded = [*samples, *[None] * (forwards * per_forward - len(samples))]
    call = replace(call, dropout=None, filters=HeldFilters())
    for number in range(forwards):
        if stopping(number):
            return None
        numbers, mine = row_samples(padded, plan, part.row, number)
        together = [
            sample for sample in padded[number * per_forward : (number + 1) * per_forward] if sample is not None
        ]
        length = task.length(together, plan)
        layout = call.layout.cut_to(length // plan.config.sequence_parallel)
        here = Slice(part.row, layout.offset, layout.local_length)
        micro_batch = task.read(mine, numbers, length, here).to(compute.device)
        loss_sum, sums, *predicted = engine(micro_batch, replace(call, layout=layout))
        total += torch.cat((loss_sum.double().view(1), sums))
        if predicted:
            predictions += _of_all_rows(predicted[0], layout, plan, part.row)
    dist.all_reduce(total)
    loss, scored, *others = total.tolist()
    means = tuple(other / scored for other in others)
    return Validated(loss / scored, round(scored), means, predictions[: len(samples)])


def _of_all_rows(predicted: Tensor, layout: Layout, plan: StagePlan, row: int) -> list[NDArray[np.float32]]:
    """The predictions of a forward of all rows, as every rank gets them: (K,) of a sequence, or (L, K) of its tokens.

    Each number is one rank's, and all others add zero to it, so none is rounded. Collective.
    """
    B, *of_one = predicted.shape
    rows = slice(row * B, (row + 1) * B)
    whole = predicted.new_zeros(
        (plan.data_parallel * B, *([layout.context_length] if len(of_one) > 1 else []), of_one[-1])
    )
    if len(of_one) > 1:
        whole[rows, layout.tokens] = predicted
    elif layout.exchange.index == 0:
        whole[rows] = predicted
    dist.all_reduce(whole)
    return [*whole.cpu().numpy()]
