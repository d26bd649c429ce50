"""Functions that run in every rank of a pool: the first argument is the rank's Compute."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.schema import RunConfig
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.heads import LabelledObjective
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.training.passes import pass_of_stage
from hyena_ds.training.step import train_step
from hyena_ds.training.validation import validate
from tests.distributed.cases import _engine, _groups, _parameters, _reduced_gradients, _replaced
from tests.distributed.work import SEED, Trained, lively_model


def lively_objective(task: LabelledTask, config: RunConfig) -> LabelledObjective:
    """Every parameter large enough to show; equal wherever it is called."""
    objective = task.objective()
    objective.backbone.load_state_dict(lively_model(config.model).backbone.state_dict())
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in objective.head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return objective


def train(
    compute: Compute, config: RunConfig, steps: int, rate: float
) -> tuple[Trained, list[NDArray[np.float32]], list[int]]:
    """Train a labelled task through the trainer's engine and step, with SGD; predictions of the validation set after it, and
    the tokens of every micro step of the first step."""
    task, plan = LabelledTask(config), plan_stages(config, compute.ranks)[0]
    call, part = pass_of_stage(plan, config, compute, _groups(compute))
    objective = lively_objective(task, config)
    trained, lengths = Trained(), list[int]()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=rate)
    with _engine(compute, config, objective, optimizer) as engine:
        update = engine.step

        def capture_then_update() -> None:
            if not trained.first_gradients and engine.is_gradient_accumulation_boundary():
                trained.first_gradients = _reduced_gradients(engine)
            update()

        with _replaced(engine, "step", capture_then_update):
            for batch in task.steps(plan, part, 0):
                if batch.step == steps:
                    break
                sp = plan.config.sequence_parallel
                lengths = lengths or [sp * micro.token_ids_Bl.shape[1] for micro in batch.micro_batches]
                trained.losses.append(train_step(engine, batch, call, compute, SEED, rate).loss)
        samples = task.held_out(plan.config.context_length)
        validated = validate(engine, task, samples, plan, call, compute, part)
        assert validated is not None
        trained.parameters = _parameters(engine)
        trained.norms.append(validated.loss)
    return trained, validated.predictions, lengths


def padded(compute: Compute, config: RunConfig, lengths: list[int]) -> list[NDArray[np.float32]]:
    """Outputs of the validation set on both strands, padded to each of `lengths` in turn; per_base: of its first five bases.

    The backbone has the weights of the seed: lively filters do not fade, and would add their own rounding over 1,024 tokens.
    """
    task, plan = LabelledTask(config), plan_stages(config, compute.ranks)[0]
    call, part = pass_of_stage(plan, config, compute, _groups(compute))
    samples, found = task.held_out(plan.config.context_length), []
    objective = lively_objective(task, config)
    objective.backbone.load_state_dict(task.objective().backbone.state_dict())
    with _engine(compute, config, objective, None) as engine:
        for length in lengths:
            task.length = lambda samples, plan, length=length: length  # type: ignore[method-assign, misc]
            validated = validate(engine, task, samples, plan, call, compute, part)
            assert validated is not None
            found.append(np.stack([each[:5] if each.ndim > 1 else each for each in validated.predictions]))
    return found
