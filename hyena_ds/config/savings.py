"""Settings that make a stage ask for less memory: what a run says when memory runs out, and a plan before it starts.

stage on its ranks --savings--> a leaner activation policy | a smaller micro batch | a sequence cut over more ranks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hyena_ds.config.arithmetic import StagePlan, divisors
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.config.schema import RunConfig


@dataclass(frozen=True)
class Saving:
    """One changed setting, and what the stage then has."""

    setting: str
    """As it is written in the YAML or on the command line, with `: ` in between."""
    activation_policy: PolicyName
    micro_batch_size: int
    sequence_parallel: int


def savings(config: RunConfig, plan: StagePlan) -> Iterator[Saving]:
    """Every single setting that takes less. Slower recomputation is cheaper than more micro steps, and those are cheaper
    than more ranks; within a kind, what changes least comes first."""
    stage, policies = plan.config, list(KEPT_UNITS)
    policy, micro, sp = plan.activation_policy, plan.micro_batch_size, stage.sequence_parallel
    key, number = config.place(plan.number)
    row = key if key == "warmup" else f"{key}.{number}"
    of_row = f"{row}." if stage.activation_policy is not None else ""
    for leaner in policies[policies.index(policy) + 1 :]:
        yield Saving(f"{of_row}activation_policy: {leaner}", leaner, micro, sp)
    if key == "stages":
        for smaller in divisors(micro)[-2::-1]:
            yield Saving(f"{row}.micro_batch_size: {smaller}", policy, smaller, sp)
    for wider in divisors(config.model.width):
        if wider <= sp or stage.context_length % wider or stage.context_length < 2 * wider:
            continue
        if key == "stages":
            yield Saving(f"{row}.sequence_parallel: {wider}", policy, micro, wider)
        elif wider & (wider - 1) == 0:  # rungs are cut over powers of two
            yield Saving(f"warmup.tokens_per_rank: {stage.context_length // wider}", policy, micro, wider)
