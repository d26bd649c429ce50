"""The same step through the trainer's own step and DeepSpeed engine: what the engine costs beside the bare step."""

from __future__ import annotations

from typing import Any

import torch

from hyena_ds.bench.case import SEED
from hyena_ds.bench.hyena_side import HyenaSide
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.data.loader import MicroBatch, StepBatch
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.training.engine import build_engine
from hyena_ds.training.step import Watcher, train_step

_LEARNING_RATE = 1e-4


class EngineSide(HyenaSide):
    """One rank. The bare model is checked, and its short pass timed, before the first step gives it to the engine."""

    engine: Any = None
    steps = 0
    watcher: Watcher | None = None
    gathered: tuple[float, ...] = ()
    """What the last step's watchers handed in."""

    def extra(self) -> dict[str, Any]:
        """Seconds of the filter, for the side's row."""
        return {"filter_seconds": self.filter_seconds()}

    def whole_step(self, length: int) -> float:
        """One optimizer step at a context of `length` tokens; this rank's part of the mean loss. Collective."""
        if self.engine is None:
            self.engine = build_engine(self._config(), self.objective, self.compute.ranks)
        layout = self.layout(length)
        numbers_B = torch.arange(self.case.batch)
        micro_batches = [
            MicroBatch(*self.local_batch(layout, number), numbers_B) for number in range(self.case.accumulation)
        ]
        batch = StepBatch(self.steps, micro_batches, self.case.tokens)
        self.steps += 1
        how = {"compute_dtype": self.dtype, "kernels": self.kernels}
        call = ForwardPass(layout, policy=self.case.activation_policy, **how)
        result = train_step(self.engine, batch, call, self.compute, SEED, _LEARNING_RATE, watcher=self.watcher)
        self.gathered = result.gathered
        return result.loss / self.compute.ranks  # it is already that of all ranks

    def _config(self) -> RunConfig:
        case = self.case
        sequences = case.batch * case.accumulation
        stage = StageConfig(case.context_length, 1, case.batch, sequences, sequence_parallel=case.sequence_parallel)
        return run_config(case.config, stage, precision=case.precision, activation_policy=case.policy)


def run_config(model: ModelConfig, stage: StageConfig, **settings: Any) -> RunConfig:
    """A run of one stage; nothing is read, so its source need not exist."""
    return RunConfig("bench", model, DataConfig(sources=(SourceConfig("unused"),)), stages=(stage,), **settings)
