"""What follows from a run's config and the number of ranks: grids, accumulation, steps, learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyena_ds.config.schema import OptimizerConfig, RunConfig, StageConfig
from hyena_ds.errors import UserError


@dataclass(frozen=True)
class StagePlan:
    """A stage on a given number of ranks."""

    number: int
    config: StageConfig
    data_parallel: int
    accumulation: int
    """Micro steps per optimizer step."""
    first_step: int
    """Number of the stage's first optimizer step within the run; steps count from 0."""

    @property
    def end_step(self) -> int:
        return self.first_step + self.config.steps


def plan_stages(config: RunConfig, ranks: int) -> tuple[StagePlan, ...]:
    """The grid and the batch arithmetic of every stage. Raises UserError when ranks or batch do not divide."""
    plans = []
    first_step = 0
    for number, stage in enumerate(config.stages):
        sp = stage.sequence_parallel
        if ranks % sp:
            raise UserError(
                f"stages.{number}.sequence_parallel: found {sp} with {ranks} ranks, wanted a divisor of the number of "
                f"ranks; start a multiple of {sp} ranks or lower sequence_parallel"
            )
        data_parallel = ranks // sp
        per_micro_step = data_parallel * stage.micro_batch_size
        if stage.sequences % per_micro_step:
            raise UserError(
                f"stages.{number}.global_batch: found {stage.sequences} sequences, wanted a multiple of {per_micro_step} "
                f"(data parallel {data_parallel} x micro_batch_size {stage.micro_batch_size} on {ranks} ranks); "
                "change global_batch or micro_batch_size"
            )
        plans.append(StagePlan(number, stage, data_parallel, stage.sequences // per_micro_step, first_step))
        first_step += stage.steps
    return tuple(plans)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Linear warmup, then a cosine to the minimum at the run's last step; `step` counts from 0."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.warmup_learning_rate + (config.learning_rate - config.warmup_learning_rate) * step / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    span = config.learning_rate - config.minimum_learning_rate
    return config.minimum_learning_rate + 0.5 * span * (1.0 + math.cos(math.pi * min(1.0, progress)))


def describe(config: RunConfig, ranks: int) -> list[str]:
    """The derived numbers, a line each, as `hyena-ds check` and the start of a run print them."""
    lines = [
        f"{config.name}: {config.total_steps} steps, {config.total_tokens:,} tokens, ZeRO stage {config.zero_stage}, "
        f"{config.precision}, on {ranks} {'rank' if ranks == 1 else 'ranks'}"
    ]
    if config.model.extension is not None:
        lines.append(
            f"model: maximum context {config.model.maximum_context:,}, extended from {config.model.extended_from:,} by "
            f"{config.model.extension}"
        )
    for plan in plan_stages(config, ranks):
        stage = plan.config
        sp = stage.sequence_parallel
        last = plan.end_step - 1
        lines.append(
            f"stage {plan.number}: context {stage.context_length:,} = {sp} x {stage.context_length // sp:,} | grid dp "
            f"{plan.data_parallel} x sp {sp} | batch {stage.sequences} = {plan.data_parallel} rows x "
            f"{stage.micro_batch_size} sequences x {plan.accumulation} micro steps | {stage.tokens_per_step:,} tokens a "
            f"step | steps {plan.first_step + 1} to {plan.end_step} | learning rate "
            f"{learning_rate(config.optimizer, plan.first_step, config.total_steps):.2e} to "
            f"{learning_rate(config.optimizer, last, config.total_steps):.2e}"
        )
    return lines
