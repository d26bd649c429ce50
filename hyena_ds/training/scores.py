"""The validations of a run: of the stage under way, and of the last stage's context length.

    due(stage, step) --> [the stage, the last stage] or fewer --validate--> a row of metrics.jsonl each

They change nothing of the training, unless the task ends it when they get no better. One that was asked to stop is made up for
when the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.large import give_back
from hyena_ds.parallel.agreement import from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.runtime.interruption import Stop
from hyena_ds.runtime.watchdog import Watchdog
from hyena_ds.tasks.task import Task
from hyena_ds.training.journal import Journal
from hyena_ds.training.selection import Selection
from hyena_ds.training.validation import Validated, validate


@dataclass
class Scores:
    """When held-out samples are scored, and what came of it last."""

    config: RunConfig
    task: Task
    compute: Compute
    plans: tuple[StagePlan, ...]
    pass_of_stage: Callable[[StagePlan], tuple[ForwardPass, Slice]]
    """How a stage's passes run here, and this rank's part of its batches."""
    asked_to_stop: Callable[[], Stop | None]
    """Collective."""
    watchdog: Watchdog
    last: dict[str, Any] = field(default_factory=dict)
    """The row of the last validation."""
    quality: dict[str, float] = field(default_factory=dict)
    selection: Selection = field(init=False)

    def __post_init__(self) -> None:
        self.selection = Selection(self.task)

    def restore(self, journal: Journal, saved: set[int]) -> None:
        """Take in the validations that the run has had; `saved` are the steps of its checkpoints. Collective."""
        self.selection = Selection(self.task)
        if self.task.selects:
            final = self.plans[-1].config.context_length
            self.selection.restore(from_rank_zero(lambda: journal.validations(final)), saved)

    def due(self, plan: StagePlan, step: int) -> list[StagePlan]:
        """The stages whose windows are scored after `step` steps, the last of which was of `plan`."""
        boundary = step == plan.end_step
        if self.config.steps_only or step == 0 or not (boundary or step % self.config.validation.every_steps == 0):
            return []
        final, when = self.plans[-1], self.config.validation.final_context
        another = final.config.context_length != plan.config.context_length
        return [plan, final] if another and (when == "always" or (when == "boundaries" and boundary)) else [plan]

    def after_step(
        self, engine: deepspeed.DeepSpeedEngine, journal: Journal, plan: StagePlan, step: int
    ) -> Stop | None:
        """Score what is due, unless somebody asks to stop first. Collective."""
        return self._score(engine, journal, plan, step, self.due(plan, step))

    def owed(self, engine: deepspeed.DeepSpeedEngine, journal: Journal, step: int) -> Stop | None:
        """Make up for what a run that was cut short did not score; one without steps left needs it again. Collective."""
        plan = next(plan for plan in self.plans if step <= plan.end_step)
        wanted = self.due(plan, step)
        there = from_rank_zero(lambda: [journal.is_scored(step, at.config.context_length) for at in wanted])
        ended = step == self.config.total_steps or self.selection.ends
        missing = [at for at, scored in zip(wanted, there, strict=True) if ended or not scored]
        return self._score(engine, journal, plan, step, missing)

    def predictions(self, engine: deepspeed.DeepSpeedEngine, samples: Sequence[Any]) -> list[NDArray[np.float32]]:
        """What the engine predicts for each of `samples`, which are no validation. Collective."""

        def mark(forward: int) -> bool:
            self.watchdog.mark(f"forward {forward + 1}")
            return False

        plan = self.plans[-1]
        call, part = self.pass_of_stage(plan)
        result = validate(engine, self.task, samples, plan, call, self.compute, part, mark)
        assert result is not None
        return result.predictions

    def _score(
        self, engine: deepspeed.DeepSpeedEngine, journal: Journal, plan: StagePlan, step: int, wanted: list[StagePlan]
    ) -> Stop | None:
        stop: Stop | None = None

        def stopping(forward: int) -> bool:
            nonlocal stop
            self.watchdog.mark(f"forward {forward + 1}")
            stop = self.asked_to_stop()
            return stop is not None

        for at in wanted:
            self.watchdog.enter("validation", step)
            call, part = self.pass_of_stage(at)
            context_length = at.config.context_length
            samples = self.task.held_out(context_length)
            if at is not plan:
                give_back()  # memory of other sizes, before and after
            result = validate(engine, self.task, samples, at, call, self.compute, part, stopping)
            if at is not plan:
                give_back()
            if result is None:
                return stop
            self.quality = self._quality(samples, result)
            self.last = {
                "step": step,
                "stage": plan.number,
                "context_length": context_length,
                **{f"validation_{name}": value for name, value in self.quality.items()},
            }
            journal.validation(self.last, result.scored, at_final=at is not plan)
            if context_length == self.plans[-1].config.context_length:
                self.selection.add(self.last)
        return None

    def _quality(self, samples: Sequence[Any], result: Validated) -> dict[str, float]:
        """The columns of a validation. Collective where there are predictions: numbers are rounded on one machine alone."""
        quality = self.task.quality(result.loss, result.means)
        if not result.predictions:
            return quality
        return from_rank_zero(lambda: quality | self.task.measures(samples, result.predictions))
