"""Steps whose loss or gradient norm is NaN or infinite: what becomes of the run, and which samples are to blame.

    bad step --up to `skips` in a row--> skipped
             --one more--> rolled back to the last checkpoint; on the way back the bad steps are passed over
             --no roll back left--> NotFiniteError that names the samples

What was skipped is part of RunState, so a resumed run decides as the uninterrupted one would have. All ranks decide
alike: a step's loss and norm are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.survival import NonFiniteConfig
from hyena_ds.data.loader import StepBatch
from hyena_ds.errors import NotFiniteError
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.agreement import agreed
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.task import Task
from hyena_ds.training.step import StepResult

_SHOWN = 8
"""Samples that one message names at most."""


class Consequence(Enum):
    """What a bad step means for the run."""

    SKIP = "skip"
    ROLL_BACK = "roll back"
    STOP = "stop"


def in_a_row(state: RunState) -> int:
    """How many of the last steps of `state` were skipped, without another between them."""
    skipped, count = set(state.skipped), 0
    while state.step - 1 - count in skipped:
        count += 1
    return count


def consequence(state: RunState, policy: NonFiniteConfig) -> Consequence:
    """What follows when the last step of `state` was skipped."""
    if in_a_row(state) <= policy.skips:
        return Consequence.SKIP
    return Consequence.ROLL_BACK if state.roll_backs < policy.roll_backs else Consequence.STOP


def rolled_back(now: RunState, checkpoint: RunState, blames: bool = True) -> RunState:
    """The state with which a run that stands at `now` goes on from `checkpoint`: what was skipped since is passed over,
    unless something else than its samples is to blame."""
    bad = {step for step in now.skipped if step >= checkpoint.step and blames}
    passed_over = tuple(sorted(bad | set(now.passed_over)))
    return replace(checkpoint, passed_over=passed_over, roll_backs=now.roll_backs + 1)


@torch.no_grad()
def to_blame(
    engine: deepspeed.DeepSpeedEngine,
    batch: StepBatch,
    call: ForwardPass,
    compute: Compute,
    config: RunConfig,
    task: Task,
    plan: StagePlan,
) -> Sequence[object]:
    """The samples of a step whose own loss is not finite; all of the step's where there is none. Collective.

    Every rank runs each of its samples alone through the model, with the masks and the parameters of the step.
    """
    losses = torch.zeros(plan.config.sequences, dtype=torch.float64, device=compute.device)
    filters = HeldFilters()
    for micro_batch in batch.micro_batches:
        here = micro_batch.to(compute.device)
        for row, number in enumerate(micro_batch.samples_B.tolist()):
            one = slice(row, row + 1)
            key = DropoutKey(config.seed, batch.step, here.samples_B[one])
            layout = call.layout.cut_to(here.token_ids_Bl.shape[1])
            alone = replace(call, layout=layout, dropout=key, filters=filters)
            losses[number] += engine(here.rows(one), alone)[0]
    dist.all_reduce(losses)
    samples = agreed(lambda: task.samples(batch.step))
    bad = [sample for sample, loss in zip(samples, losses.tolist(), strict=True) if not math.isfinite(loss)]
    return bad or samples


def says(result: StepResult) -> str:
    """What of a skipped step was not finite."""
    if math.isfinite(result.loss):
        return f"the loss is {result.loss:.4f}, but the gradient norm is not finite"
    return f"the loss is {result.loss}"


def named(samples: Sequence[object]) -> str:
    """Where samples come from, for a message."""
    shown = ", ".join(str(sample) for sample in samples[:_SHOWN])
    return shown if len(samples) <= _SHOWN else f"{shown} and {len(samples) - _SHOWN} more"


def stop(state: RunState, policy: NonFiniteConfig, found: str, samples: Sequence[object]) -> NotFiniteError:
    """The end of a run that had no roll back left. `found` is what `says` says of its last step."""
    return NotFiniteError(
        f"step {state.step}: {found}, {in_a_row(state)} steps in a row were not finite and the run was rolled back "
        f"{state.roll_backs} of {policy.roll_backs} times; samples: {named(samples)}; look at these samples and at the "
        "gradient norms before them in metrics.jsonl, lower optimizer.learning_rate, or raise non_finite.skips or "
        "non_finite.roll_backs and start the same line again"
    )
