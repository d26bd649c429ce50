"""Predicting the next base: cross-entropy over the windows of a genome, set beside Markov models of the same bases."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.baselines.markov import bits, markov_losses
from hyena_ds.checkpoints.weights import check_same_shape, read_aloud
from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import MicroBatch, Slice, StepBatch, make_micro_batch, stage_steps
from hyena_ds.data.provenance import Consumed, consumed, write_order
from hyena_ds.data.shards import ShardIndex
from hyena_ds.data.stream import Sample, Sources, validation_samples
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.shards import check_shards
from hyena_ds.tasks.task import Conclusion, Objective, Task
from hyena_ds.weights.published import published_sources

BASELINE_ORDERS = (0, 2, 5)
_TITLES = {"loss": "nats a base", "bits_per_base": "bits a base", "perplexity": "perplexity"}


class NextToken(Objective):
    """Cross-entropy of the next token, in nats. Its parameters have the names that they have in the model."""

    def __init__(self, model: HyenaDNA):
        super().__init__()
        self.backbone = model.backbone

    def forward(self, batch: MicroBatch, call: ForwardPass) -> tuple[Tensor, Tensor]:
        """(loss sum, number of scored targets) of this rank's slice."""
        loss, scored = self.loss(batch.token_ids_Bl, batch.targets, call)
        return loss, scored.double().view(1)

    def loss(self, token_ids_Bl: Tensor, targets_Bl: Tensor, call: ForwardPass) -> tuple[Tensor, Tensor]:
        """(loss sum, scored targets), both scalars; only the first carries a gradient."""
        residual_BlD = self.backbone.residual(token_ids_Bl, call)
        norm = self.backbone.final_norm
        kernel = None if call.kernels is None else call.kernels.loss
        weights = norm.weight, norm.bias, self.backbone.embedding.weight
        loss = summed_cross_entropy(residual_BlD, *weights, targets_Bl, kernel)
        return loss, (targets_Bl != IGNORED).sum()

    @torch.no_grad()
    def logits(self, token_ids_Bl: Tensor, call: ForwardPass) -> Tensor:
        """(B, l) -> (B, l, 16)."""
        return F.linear(self.backbone(token_ids_Bl, call), self.backbone.embedding.weight)


class NextTokenTask(Task):
    """Training as a run's `data` and `model` say."""

    unit = "nats a base"
    counted = "bases"
    headline = ("loss", "perplexity")
    held_out_name = "windows"
    best = ("loss", True)

    def __init__(self, config: RunConfig):
        self._config = config
        self._indices: list[ShardIndex] | None = None
        """Those that all ranks have agreed on; until then whoever needs them reads them."""
        self._held_out: dict[int, list[Sample]] = {}

    @cached_property
    def _valid(self) -> Sources:
        return Sources(self._config.data, "valid", self._indices)

    def objective(self) -> NextToken:
        """A language model with the first weights of the config's seed."""
        return NextToken(build_model(self._config.model, self._config.seed))

    def initialize(self, objective: Objective) -> None:
        """Load published weights, a checkpoint's or a run's. Raises UserError where they do not fit the model."""
        weights = read_aloud(self._config.initialize_from or "", self._config.model.filter_shift)
        check_same_shape(weights.path, weights.config, self._config.model)
        objective.load_state_dict(weights.parameters)

    def check_data(self, compute: Compute) -> ShardList:
        """On rank 0 the list of the shards, which every node has found alike. Collective; raises UserError on all ranks."""
        self._indices, listed = check_shards(self._config, compute)
        return listed

    def write_order(self, file: Path) -> None:
        """Write stream.jsonl: which shards each epoch of a source takes."""
        write_order(file, self._config, self._indices)

    def steps(self, plan: StagePlan, part: Slice, from_step: int) -> Iterator[StepBatch]:
        """Windows of the sources, in the order that the seed gives."""
        return stage_steps(self._config.data, self._config.seed, plan, part, from_step, self._indices)

    def samples(self, step: int) -> list[Consumed]:
        """Which bases a step takes, with their coordinates."""
        return consumed(self._config, step, self._indices)

    def held_out(self, context_length: int) -> list[Sample]:
        """Windows of the validation split, as many as the config says."""
        if context_length not in self._held_out:
            count = self._config.validation.windows
            self._held_out[context_length] = validation_samples(self._valid, context_length, count)
        return self._held_out[context_length]

    def read(
        self, samples: Sequence[Sample | None], numbers: list[int], context_length: int, part: Slice
    ) -> MicroBatch:
        """Token ids and targets of this rank's slice."""
        return make_micro_batch(self._valid, context_length, numbers, [*samples], part)

    def quality(self, loss: float, sums: Sequence[float] = ()) -> dict[str, float]:
        """Loss in nats, perplexity, and bits a base."""
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "bits_per_base": bits(loss)}

    def conclude(self, context_length: int, quality: dict[str, float]) -> Conclusion:
        """Set the loss beside Markov models that count the training split."""
        training = Sources(self._config.data, "train", self._indices)
        samples = self.held_out(context_length)
        losses = markov_losses(training, self._valid, samples, context_length, BASELINE_ORDERS)
        rows = [("HyenaDNA (this run)", quality["loss"])]
        rows += [(f"Markov, order {order}", value) for order, value in losses.items()]
        lines = [f"  {'model':<22}" + "".join(f"{title:>12}" for title in _TITLES.values())]
        for name, value in rows:
            found = self.quality(value)
            lines.append(f"  {name:<22}" + "".join(f"{found[column]:>12.4f}" for column in _TITLES))
        beaten = [order for order, value in losses.items() if quality["loss"] < value]
        lines += [
            "",
            f"The model predicts better than order {', '.join(map(str, beaten))}."
            if beaten
            else "The model does not yet beat a Markov baseline: train it longer.",
        ]
        return Conclusion({"markov_losses": {str(order): value for order, value in losses.items()}}, lines)

    def exported(self, parameters: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The weights under the published names, and the model's shape for their header."""
        return published_sources(self._config.model)
