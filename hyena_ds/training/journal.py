"""What a run writes down of itself: the rows of its steps and validations, and what it says. On rank 0; elsewhere nothing."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from hyena_ds.checkpoints.manifest import WEIGHTS, RunState
from hyena_ds.config.arithmetic import StagePlan, tokens_until
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.efficiency import Limits, calibration_file, efficiency, measured_rates, published_peak
from hyena_ds.cost.shape import shape_of_stage
from hyena_ds.files.growing import append_line
from hyena_ds.monitoring.metrics import finite
from hyena_ds.monitoring.monitors import Monitors
from hyena_ds.monitoring.progress import Progress, Reached
from hyena_ds.monitoring.recorder import Recorder
from hyena_ds.monitoring.scalars import of_step, of_validation
from hyena_ds.parallel.devices import Compute, device_name, is_accelerated
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.tasks.task import Task
from hyena_ds.training.clock import StepCost
from hyena_ds.training.step import StepResult


class Journal:
    """Every rank has one; only rank 0's has a recorder."""

    def __init__(
        self, directory: RunDirectory, config: RunConfig, task: Task, run_name: str, state: RunState, compute: Compute
    ):
        """Later rows than `state`, of a run cut short, are dropped. `run_name` is random."""
        self._directory, self._config, self._task, self._run_name = directory, config, task, run_name
        self._recorder = self._open(state) if compute.rank == 0 else None
        self._on_cpu = not is_accelerated(compute)
        self._limits = self._find_limits(compute) if compute.rank == 0 else Limits()

    def roll_back(self, state: RunState) -> None:
        """Go on after `state`, as a resumed run would."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = self._open(state)

    def close(self) -> None:
        """Close the files."""
        if self._recorder is not None:
            self._recorder.close()

    def starts(self, environment: dict[str, Any]) -> None:
        """The row of this start in environment.jsonl."""
        if self._recorder is not None:
            try:
                row = {**environment, "unit": self._task.unit}
                append_line(self._directory.environment, json.dumps(row))
            except OSError as error:
                self.say(f"{error.filename}: cannot be written ({error.strerror}); training goes on without it")

    def say(self, *lines: str) -> None:
        """Lines for the terminal and for log.txt."""
        if self._recorder is not None:
            for line in lines:
                self._recorder.say(line)

    def step(
        self, plan: StagePlan, state: RunState, result: StepResult, rate: float, cost: StepCost, seen: dict[str, Any]
    ) -> None:
        """The row of a step with learning rate `rate`, and at its end the columns `seen`."""
        recorder = self._recorder
        if recorder is None:
            return
        quality = self._task.quality(result.loss, result.means)
        row = {
            **_where(plan, state),
            **quality,
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
            "tokens": state.tokens,
            "tokens_per_second": plan.config.tokens_per_step / cost.seconds,
            "peak_memory_gib": cost.peak_memory_gib,
            "exchange_share": cost.exchange_share,
            "input_wait_seconds": cost.input_wait_seconds,
            **self._efficiency(plan, cost.seconds),
        }
        if result.skipped:
            row["skipped"] = True
        else:
            spike = recorder.losses.spike(result.loss)
            row |= {} if spike is None else {"loss_spike": spike}
            recorder.losses.add(result.loss)
        row |= seen
        recorder.row(row, of_step(finite(row), quality))
        recorder.advance(self._reached(plan, state, result.loss))

    def passed_over(self, plan: StagePlan, state: RunState) -> None:
        """The row of a step on which nothing is trained any more."""
        if self._recorder is None:
            return
        row = {**_where(plan, state), "loss": None, "skipped": True, "passed_over": True, "tokens": state.tokens}
        self._recorder.row(row, of_step(row, ()))
        self._recorder.advance(self._reached(plan, state, math.nan))

    def validation(self, row: dict[str, Any], scored: int, at_final: bool) -> None:
        """The row of a validation, unless it is there from before the run was cut short."""
        if self._recorder is None:
            return
        if not self.is_scored(row["step"], row["context_length"]):
            self._recorder.row(row, of_validation(finite(row), at_final))
        loss, *others = (f"{name} {row[f'validation_{name}']:.4f}" for name in self._task.headline)
        self.say(
            f"step {row['step']}: validation {loss} {', '.join([self._task.unit, *others])} "
            f"(context {row['context_length']:,}, {scored:,} {self._task.counted})"
        )

    def validations(self, context_length: int) -> list[dict[str, Any]]:
        """The rows of a context length's validations that metrics.jsonl had at the start, or at a roll back."""
        found = [] if self._recorder is None else self._recorder.validations
        return [row for row in found if row["context_length"] == context_length]

    def is_scored(self, step: int, context_length: int) -> bool:
        """Whether metrics.jsonl has this validation."""
        return self._recorder is not None and (step, context_length) in self._recorder.scored

    def problem(self) -> str | None:
        """Why metrics.jsonl lacks rows, after another attempt to write them; None where it has them all."""
        return None if self._recorder is None else self._recorder.problem()

    def end_progress(self) -> None:
        """Take the progress bar away."""
        if self._recorder is not None:
            self._recorder.end_progress()

    def conclude(self, step: int, context_length: int, lines: list[str]) -> None:
        """The last words: what the task makes of the validation of the run's weights, those of `step`, and where everything is."""
        path = self._directory.path
        self.say(
            "",
            f"held-out {self._task.held_out_name} of {context_length:,} bases",
            "",
            *lines,
            f"run: {path}   weights: {path / 'checkpoints' / f'step-{step:08d}' / WEIGHTS}",
            f"curves: tensorboard --logdir {path / 'tensorboard'}",
        )

    def _efficiency(self, plan: StagePlan, seconds: float) -> dict[str, float | None]:
        """What is known of it; the counts are those of pretraining, so a task has none."""
        return efficiency(shape_of_stage(self._config, plan, self._on_cpu), seconds, self._limits, self._on_cpu)

    def _find_limits(self, compute: Compute) -> Limits:
        if self._config.task is not None:
            return Limits()
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or compute.ranks)
        peak = None if self._on_cpu else published_peak(device_name(compute), self._config.precision)
        return Limits(peak, measured_rates(calibration_file(), here, self._on_cpu))

    def _open(self, state: RunState) -> Recorder:
        paths, config, step = self._directory, self._config, state.step
        progress = Progress(config.total_steps, config.total_tokens, step, tokens_until(config, step))
        asked = config.monitors.csv or config.monitors.wandb is not None
        monitors = Monitors(config.monitors, paths.path, config.name, self._run_name, step) if asked else None
        return Recorder(paths.metrics, paths.log, paths.tensorboard, step, progress, monitors)

    def _reached(self, plan: StagePlan, state: RunState, loss: float) -> Reached:
        tokens = tokens_until(self._config, state.step)
        return Reached(state.step, tokens, plan.number, plan.config.context_length, loss)


def _where(plan: StagePlan, state: RunState) -> dict[str, Any]:
    return {"step": state.step, "stage": plan.number, "context_length": plan.config.context_length}
