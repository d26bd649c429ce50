"""What the machine does to a run in the middle of a stage, as one sentence that says what to do.

    torch.OutOfMemoryError, the CPU allocator's RuntimeError, a dead DataLoader worker --in_a_sentence--> LocalError

It is met by one rank while the others wait in a collective, so that rank speaks for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import LocalError

_ALLOCATOR = re.compile(r"can't allocate memory|bad_alloc|failed to allocate|out of memory", re.IGNORECASE)
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
    """Slower recomputation is cheaper than more micro steps, and those are cheaper than more ranks."""
    stage, policies = plan.config, list(KEPT_UNITS)
    key, number = config.place(plan.number)
    row = key if key == "warmup" else f"{key}.{number}"
    place = policies.index(plan.activation_policy)
    if place + 1 < len(policies):
        policy = policies[place + 1]
        of_row = f"{row}." if stage.activation_policy is not None else ""
        return f"set {of_row}activation_policy: {policy} ({_gib(config, plan, KEPT_UNITS[policy])})"
    if plan.micro_batch_size > 1 and key == "stages":
        smaller = next(n for n in range(plan.micro_batch_size - 1, 0, -1) if plan.micro_batch_size % n == 0)
        return f"set {row}.micro_batch_size: {smaller}, with the same results"
    ranks = plan.data_parallel * stage.sequence_parallel
    for wider in range(stage.sequence_parallel + 1, config.model.width + 1):
        if config.model.width % wider == 0 and stage.context_length % wider == 0:
            more = f" on {wider} ranks or more" if wider > ranks else ""
            if key == "warmup":
                return f"set warmup.tokens_per_rank: {stage.local_length // 2}{more}, or shorten the context"
            return f"set {row}.sequence_parallel: {wider}{more}, or shorten the context"
    return "shorten the context or narrow the model"


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
