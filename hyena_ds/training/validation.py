"""Loss on a fixed set of held-out windows, on the training grid.

The last batches are padded with sequences of which nothing is scored, so that every rank runs the same forwards.
Nothing of the stream, the optimizer or a generator is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.data.loader import MicroBatch, Slice, make_micro_batch
from hyena_ds.data.stream import Sample, Sources, row_samples
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.devices import Compute


@torch.no_grad()
def validate(
    engine: deepspeed.DeepSpeedEngine,
    sources: Sources,
    samples: list[Sample],
    plan: StagePlan,
    run: ForwardPass,
    compute: Compute,
    row: int,
    stopping: Callable[[int], bool] = lambda forward: False,
) -> tuple[float, int] | None:
    """(sum of token losses in nats, scored targets) over `samples`; the same on every rank. Collective.

    Before every forward `stopping` is asked with its number; once it says yes, on all ranks, the answer is None.
    """
    total = torch.zeros(2, dtype=torch.float64, device=compute.device)
    part = Slice(row, run.layout.offset, run.layout.local_length)
    forwards = -(-len(samples) // (plan.micro_batch_size * plan.data_parallel))
    run = replace(run, dropout=None, filters=FilterCache(forwards))  # parameters stand still: one evaluation serves all
    for number, micro_batch in enumerate(_micro_batches(sources, samples, plan, part, forwards)):
        if stopping(number):
            return None
        micro_batch = micro_batch.to(compute.device)
        loss_sum, scored = engine(micro_batch.token_ids_Bl, micro_batch.targets_Bl, run)
        total += torch.stack((loss_sum.double(), scored.double()))
    dist.all_reduce(total)
    return float(total[0]), int(total[1])


def _micro_batches(
    sources: Sources, samples: list[Sample], plan: StagePlan, part: Slice, forwards: int
) -> Iterator[MicroBatch]:
    per_forward = plan.micro_batch_size * plan.data_parallel
    padded: list[Sample | None] = [*samples, *[None] * (forwards * per_forward - len(samples))]
    for number in range(forwards):
        numbers, mine = row_samples(padded, plan, part.row, number)
        yield make_micro_batch(sources, plan.config.context_length, numbers, mine, part)
