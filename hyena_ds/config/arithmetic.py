"""What follows from a run's config and the number of ranks: grids, accumulation, steps, learning rate; and what would take less memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import OptimizerConfig, RunConfig
from hyena_ds.errors import UserError
from hyena_ds.text import aligned

_MOST_HOSTS = 64
"""That are listed."""
_TASK_TOKENS = 1 << 15
"""Tokens of a forward pass on a rank that fine-tuning takes where nothing else is said, if sequences are short enough."""


@dataclass(frozen=True)
class StagePlan:
    """A stage on a given number of ranks."""

    number: int
    """Within the run's schedule: rungs of the warmup, then rows of `stages`."""
    config: StageConfig
    data_parallel: int
    accumulation: int
    """Micro steps per optimizer step."""
    first_step: int
    """Number of the stage's first optimizer step within the run; steps count from 0."""
    micro_batch_size: int
    """Sequences per forward pass on one data-parallel row, whether configured or chosen."""
    activation_policy: PolicyName
    """The stage's own, else the run's."""

    @property
    def end_step(self) -> int:
        """The first step of the run after this stage."""
        return self.first_step + self.config.step_count


def plan_stages(config: RunConfig, ranks: int) -> tuple[StagePlan, ...]:
    """The grid and the batch arithmetic of every stage. Raises UserError when ranks or batch do not divide."""
    plans = []
    first_step = 0
    longest = max(config.schedule, key=lambda stage: (stage.context_length, stage.local_length))
    longest_kept = KEPT_UNITS[longest.activation_policy or config.activation_policy]
    for number, stage in enumerate(config.schedule):
        stage = _cut(stage, ranks, config.model.width)
        key, within = config.place(number)
        place = f"stages.{within}." if key == "stages" else f"warmup: rung {within}: "
        sp = stage.sequence_parallel
        if ranks % sp:
            raise UserError(
                f"{place}sequence_parallel: found {sp} with {ranks} ranks, wanted a divisor of the number of "
                f"ranks; start a multiple of {sp} ranks or "
                + ("lower sequence_parallel" if key == "stages" else "raise tokens_per_rank")
            )
        data_parallel = ranks // sp
        # A row with fewer sequences than a micro batch may have takes all it has at once.
        most, of_a_row = stage.micro_batch_size, max(1, stage.sequences // data_parallel)
        if most is not None and of_a_row < most:
            most = 1 if stage.sequences % data_parallel else of_a_row
        per_micro_step = data_parallel * (most or 1)
        if stage.sequences % per_micro_step:
            size, cure = "", "the number of ranks"
            if most is not None and most > 1:
                size, cure = f" x micro_batch_size {most}", "micro_batch_size"
            raise UserError(
                f"{place}global_batch: found {stage.sequences} sequences, wanted a multiple of {per_micro_step} "
                f"(data parallel {data_parallel}{size} on {ranks} ranks); change global_batch or {cure}"
            )
        per_row = stage.sequences // data_parallel
        policy = stage.activation_policy or config.activation_policy
        # A leaner policy buys no more: what a layer needs for a moment does not shrink with what it keeps.
        kept = KEPT_UNITS[policy]
        limit = longest.local_length * min(kept, longest_kept) // (kept * stage.local_length)
        if config.task is not None:  # its sequences are short, and one of them does not fill a machine
            limit = max(limit, _TASK_TOKENS // stage.local_length)
        fitting = (divisor for divisor in divisors(per_row) if divisor <= max(1, limit))
        micro_batch_size = most or max(fitting)
        accumulation = per_row // micro_batch_size
        plans.append(StagePlan(number, stage, data_parallel, accumulation, first_step, micro_batch_size, policy))
        first_step += stage.step_count
    return tuple(plans)


def _cut(stage: StageConfig, ranks: int, width: int) -> StageConfig:
    """The stage with sequences cut over as many ranks as it takes for each row of the grid to have one; as it is where that
    does not work out."""
    sp, length = stage.sequence_parallel, stage.context_length
    if ranks % sp or ranks // sp <= stage.sequences:
        return stage
    for wider in divisors(ranks):
        fits = wider % sp == length % wider == width % wider == 0 and length >= 2 * wider
        if fits and stage.sequences % (ranks // wider) == 0:
            return replace(stage, sequence_parallel=wider)
    return stage


@lru_cache
def divisors(number: int) -> tuple[int, ...]:
    """All of a positive number's, the smallest first."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}))


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


def describe_hosts(config: RunConfig, hosts: Sequence[str]) -> list[str]:
    """Which ranks are on which host, and the stages that cut sequences across hosts; nothing where there is one host.

    `hosts` has the host of every rank, in the order of ranks.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks_of.setdefault(host, []).append(rank)
    if len(ranks_of) == 1:
        return []
    shown = [f"{host} ({_span(ranks)})" for host, ranks in ranks_of.items()]
    if len(shown) > _MOST_HOSTS:
        shown[_MOST_HOSTS - 1 : -1] = [f"{len(shown) - _MOST_HOSTS:,} more"]
    lines = [f"hosts: {', '.join(shown)}"]
    fewest = min(map(len, ranks_of.values()))
    crossing: dict[int, int] = {1: 0}
    for plan in plan_stages(config, len(hosts)):
        sp = plan.config.sequence_parallel
        if sp not in crossing:
            groups = (hosts[first : first + sp] for first in range(0, len(hosts), sp))
            crossing[sp] = sum(len(set(group)) > 1 for group in groups)
        across = crossing[sp]
        if across:
            lines.append(
                f"stage {plan.number}: {across} of {len(hosts) // sp} sequence-parallel groups of {sp} ranks lie across hosts, and "
                "exchange activations over the network in every layer; they stay inside a host where sequence_parallel "
                f"divides the ranks of each (the smallest has {fewest})"
            )
    return lines


def _span(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def tokens_until(config: RunConfig, step: int) -> int:
    """Tokens of the first `step` steps of the schedule."""
    tokens = 0
    for stage in config.schedule:
        steps = min(step, stage.step_count)
        tokens, step = tokens + steps * stage.tokens_per_step, step - steps
    return tokens


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Linear warmup, then a cosine to the minimum at the run's last step; `step` counts from 0 over the whole run.

    One schedule serves all stages: it is a function of the run's step alone, and nothing is reset at a stage's boundary.
    """
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.warmup_learning_rate + (config.learning_rate - config.warmup_learning_rate) * step / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    span = config.learning_rate - config.minimum_learning_rate
    return config.minimum_learning_rate + 0.5 * span * (1.0 + math.cos(math.pi * min(1.0, progress)))


def describe(config: RunConfig, ranks: int) -> list[str]:
    """The derived numbers, as `hyena-ds check` and the start of a run print them: a line for the run, a row a stage."""
    optimizer, validation = config.optimizer, config.validation
    plans = plan_stages(config, ranks)
    lines = [
        f"{config.name}: {_steps(config.total_steps)}, {config.total_tokens:,} tokens, ZeRO stage {config.zero_stage}, "
        f"{config.precision}, on {ranks} {'rank' if ranks == 1 else 'ranks'}"
    ]
    if config.model.extension is not None:
        lines.append(
            f"model: maximum context {config.model.maximum_context:,}, extended from {config.model.extended_from:,} by "
            f"{config.model.extension}"
        )
    lines.append(
        f"learning rate: one schedule over all {config.total_steps:,} steps, not reset between stages; to "
        f"{optimizer.learning_rate:.2e} in {_steps(round(optimizer.warmup_fraction * config.total_steps))}, then a cosine "
        f"to {optimizer.minimum_learning_rate:.2e}"
    )
    when = f"every {validation.every_steps:,} steps and at the end of every stage" + _at_final(config)
    lines.append(f"validation: {'none (steps_only)' if config.steps_only else when}")
    lines.append("batch: sequences of a step = data-parallel rows x micro batch x micro steps")
    return lines + aligned([_HEADINGS, *_rows(config, plans)])


def _steps(count: int) -> str:
    return f"{count:,} {'step' if count == 1 else 'steps'}"


_HEADINGS = ("stage", "context", "grid", "batch", "policy", "steps", "tokens", "so far", "learning rate")


def _at_final(config: RunConfig) -> str:
    """What of the validation is measured at the last stage's context length too."""
    final = config.schedule[-1].context_length
    if config.validation.final_context == "never" or all(s.context_length == final for s in config.schedule):
        return ""
    when = "always" if config.validation.final_context == "always" else "at the end of every stage"
    return f"; also at the final context, {final:,}: {when}"


def _rows(config: RunConfig, plans: tuple[StagePlan, ...]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    tokens, total = 0, config.total_steps
    for plan in plans:
        stage = plan.config
        tokens += stage.total_tokens
        first, last = (learning_rate(config.optimizer, step, total) for step in (plan.first_step, plan.end_step - 1))
        rows.append(
            (
                str(plan.number),
                f"{stage.context_length:,}",
                f"dp {plan.data_parallel} x sp {stage.sequence_parallel}",
                f"{stage.sequences} = {plan.data_parallel} x {plan.micro_batch_size} x {plan.accumulation}",
                plan.activation_policy,
                f"{plan.first_step + 1:,} to {plan.end_step:,}",
                f"{stage.total_tokens:,}",
                f"{tokens:,}",
                f"{first:.2e} to {last:.2e}",
            )
        )
    return rows
