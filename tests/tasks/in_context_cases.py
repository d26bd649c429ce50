"""The cases of fine-tuning, with what stands around the sequences. They run in every rank of a pool."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_ds.config.schema import RunConfig
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.in_context import InContextObjective, InContextTask
from tests.distributed.cases import _replaced
from tests.distributed.work import SEED, Trained, lively_model
from tests.tasks import finetuning_cases


def lively_objective(task: InContextTask, config: RunConfig) -> InContextObjective:
    """Every parameter large enough to show, the prompt too; equal wherever it is called."""
    objective = task.objective()
    objective.backbone.load_state_dict(lively_model(config.model).backbone.state_dict())
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return objective


def train(
    compute: Compute, config: RunConfig, steps: int, rate: float
) -> tuple[Trained, list[NDArray[np.float32]], list[int]]:
    """As `finetuning_cases.train`."""
    with (
        _replaced(finetuning_cases, "LabelledTask", InContextTask),
        _replaced(finetuning_cases, "lively_objective", lively_objective),
    ):
        return finetuning_cases.train(compute, config, steps, rate)
