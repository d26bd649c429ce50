"""What the machine does to a run in the middle of a stage, as one sentence that says what to do.

    torch.OutOfMemoryError, the CPU allocator's RuntimeError, a dead DataLoader worker --in_a_sentence--> LocalError

It is met by one rank while the others wait in a collective, so that rank speaks for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hyena_ds.config.arithmetic import StagePlan, savings
from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import LocalError

_ALLOCATOR = re.compile(
    r"can't allocate memory|bad_alloc|failed to allocate|out of memory|_ALLOC_FAILED", re.IGNORECASE
)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", re.DOTALL)


@contextmanager
def in_a_sentence(config: RunConfig, plan: StagePlan) -> Iterator[None]:
    """Turn what the machine did to this rank in stage `plan` into a LocalError; everything else passes through."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        where = f"stage {plan.number}"
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _ALLOCATOR.search(text):
            raise LocalError(f"{where}: {out_of_memory(config, plan)}") from None
        if worker := _WORKER.search(text):
            raise LocalError(f"{where}: {_dead_worker(worker[1], worker[2], config.data.workers)}") from None
        raise


def out_of_memory(config: RunConfig, plan: StagePlan) -> str:
    """What was asked for, and the cheapest change that asks for less."""
    stage = plan.config
    asked = (
        f"out of memory at context_length {stage.context_length:,}, micro_batch_size {plan.micro_batch_size:,}, "
        f"sequence_parallel {stage.sequence_parallel} and activation_policy {plan.activation_policy}, which keeps "
        f"{_gib(config, plan, KEPT_UNITS[plan.activation_policy])} for backward"
    )
    return f"{asked}; {_leaner(config, plan)}, then start again: a run continues from its last checkpoint"


def _leaner(config: RunConfig, plan: StagePlan) -> str:
    """The first saving, in a few words."""
    stage = plan.config
    saving = next(savings(config, plan), None)
    if saving is None:
        return "shorten the context or narrow the model"
    if saving.activation_policy != plan.activation_policy:
        return f"set {saving.setting} ({_gib(config, plan, KEPT_UNITS[saving.activation_policy])})"
    if saving.micro_batch_size < plan.micro_batch_size:
        return f"set {saving.setting}, with the same results"
    ranks = plan.data_parallel * stage.sequence_parallel
    more = f" on {saving.sequence_parallel} ranks or more" if saving.sequence_parallel > ranks else ""
    return f"set {saving.setting}{more}, or shorten the context"


def _gib(config: RunConfig, plan: StagePlan, units: int) -> str:
    """`units` of B x l x D float32 a layer."""
    stage = plan.config
    local = stage.context_length // stage.sequence_parallel
    size = 4 * plan.micro_batch_size * local * config.model.width * config.model.layers * units
    return f"about {size / 2**30:.2g} GiB"


def _dead_worker(pids: str, how: str, workers: int) -> str:
    cure = (
        "start again: the run continues from its last checkpoint; when it happens again, the machine may be short of "
        f"memory: lower data.workers (now {workers}), or set it to 0 to read in the training process"
    )
    if "shared memory" in how or "Bus error" in how:
        cure = f"enlarge /dev/shm, or set data.workers (now {workers}) to 0"
    by = re.search(r"killed by signal: ([\w ]+)", how)
    found = f"was killed ({by[1].strip()})" if by else "ended unexpectedly"
    return f"the process that reads ahead (pid {pids}) {found}; {cure}"
