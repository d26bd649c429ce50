"""Fine-tuning on labelled sequences: classes, outputs, numbers, or a class for every base.

    sample number --seed--> row of the epoch's order, strand --> a step's sequences, the longest first
    --micro steps--> sequences of like length, padded on the right to a bucket --> MicroBatch

The order is a pure function of (seed, step), whatever the grid. What is predicted depends on no padding: the model is causal,
and pooling leaves padding out.

B batch, l local length, K outputs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyena_ds.checkpoints.weights import check_same_shape, read_aloud
from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import MicroBatch, Slice, StepBatch
from hyena_ds.data.order import hash64, permutation
from hyena_ds.data.stream import row_samples
from hyena_ds.errors import UserError
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.tokenizer import PAD
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.heads import LabelledObjective
from hyena_ds.tasks.labelled_sets import (
    Sets,
    check_lengths,
    chosen_by,
    listed,
    read_sets,
    read_test,
    rounded_up,
)
from hyena_ds.tasks.outcomes import (
    Reading,
    mean_loss,
    measures,
    outputs_of,
    predictions_of,
    readings,
    record_test,
)
from hyena_ds.tasks.task import Conclusion, Objective, Task
from hyena_ds.weights.heads import HEAD, head_header
from hyena_ds.weights.published import published_sources

_ORDER, _STRAND = range(2)  # what a hash is for
_UNITS = {
    "classification": ("nats a sequence", "sequences"),
    "multilabel": ("nats an output", "outputs"),
    "regression": ("squared standard deviations", "numbers"),
    "per_base": ("nats a base", "bases"),
}


class LabelledTask(Task):
    """Training as a run's `task`, `model` and `stages` say."""

    held_out_name = "sequences"
    selects = True

    def __init__(self, config: RunConfig):
        assert config.task is not None
        self._config, self._task = config, config.task
        self.unit, self.counted = _UNITS[config.task.kind]
        if config.task.reverse_complement:
            self.counted += " on both strands"
        self.best = chosen_by(config.task)
        self.headline = tuple(dict.fromkeys(("loss", self.best[0])))
        self.patience = config.task.patience
        self._order = lru_cache(maxsize=2)(self._order_uncached)
        self._tested: list[Reading] = []

    @cached_property
    def sets(self) -> Sets:
        """What is trained and validated on."""
        return read_sets(self._config, self._config.seed)

    def objective(self) -> LabelledObjective:
        """A model with the first weights of the config's seed, and a head."""
        config, weights = self._config, self.sets.class_weights
        return LabelledObjective(
            build_model(config.model, config.seed),
            self._task,
            self.sets.outputs,
            config.seed,
            None if weights is None else torch.from_numpy(weights),
        )

    def initialize(self, objective: Objective) -> None:
        """Load a model's weights under the head. Raises UserError where they do not fit."""
        weights = read_aloud(self._config.initialize_from or "", self._config.model.filter_shift)
        check_same_shape(weights.path, weights.config, self._config.model)
        objective.load_state_dict(weights.parameters, strict=False)

    def check_data(self, compute: Compute) -> ShardList:
        """On rank 0 the files of the train and validation set, which every node has found alike.

        Rank 0 reads them and sends all ranks what they hold; the first rank of every other node sums its files. Collective;
        raises UserError on all ranks.
        """
        found = agreed(lambda: self._looked_at(compute))
        everywhere = from_every_rank(found.digest if found.sources else None)
        other = next((rank for rank, theirs in enumerate(everywhere) if theirs not in (None, everywhere[0])), None)
        if other is not None:
            raise UserError(
                f"task.train: {self._task.train}: rank {other} has other files than rank 0; copy the same files to every host, "
                "or name a place that all of them see"
            )
        self.sets = from_rank_zero(lambda: self.sets)
        return found

    def _looked_at(self, compute: Compute) -> ShardList:
        """What this rank looks at for others: nothing where another of its node does."""
        if compute.rank == 0:
            return self._checked()
        return listed(self._task) if compute.leads else ShardList(())

    def _checked(self) -> ShardList:
        for number, stage in enumerate(self._config.schedule):
            key, within = self._config.place(number)
            check_lengths(self.sets.train, stage.context_length, f"{key}.{within}.context_length", self.sets.around)
        check_lengths(self.sets.valid, self._config.model.maximum_context, "model.maximum_context", self.sets.around)
        if self._task.test is not None and not Path(self._task.test).exists():
            raise UserError(
                f"task.test: {self._task.test}: no such file or directory; name an existing one, or leave it out"
            )
        return listed(self._task)

    def write_order(self, file: Path) -> None:
        """Write down how many sequences there are, and the first epoch's order of them."""
        sets = self.sets
        counts = {"train": len(sets.train), "valid": len(sets.valid), "classes": sets.train.classes}
        order = [sets.train.names[number] for number in self._order(0).tolist()]
        write_whole(file, json.dumps({"seed": self._config.seed, **counts, "first_epoch": order}) + "\n")

    def steps(self, plan: StagePlan, part: Slice, from_step: int) -> Iterator[StepBatch]:
        """Steps of the stage, each of a global batch of sequences."""
        together = plan.data_parallel * plan.micro_batch_size
        for step in range(from_step, plan.end_step):
            chosen, micro_batches = self.samples(step), []
            for micro_step in range(plan.accumulation):
                length = self.length(chosen[micro_step * together : (micro_step + 1) * together], plan)
                here = _cut(part, length // plan.config.sequence_parallel)
                numbers, mine = row_samples(chosen, plan, part.row, micro_step)
                micro_batches.append(self.read(mine, numbers, length, here))
            yield StepBatch(step, micro_batches, self._scored(chosen))

    def samples(self, step: int) -> list[Reading]:
        """The sequences of a step, the longest first."""
        first = 0
        for stage in self._config.schedule:
            if step < stage.step_count:
                break
            first, step = first + stage.step_count * stage.sequences, step - stage.step_count
        train, found = self.sets.train, []
        for number in range(first + step * stage.sequences, first + (step + 1) * stage.sequences):
            epoch, within = divmod(number, len(train))
            row = int(self._order(epoch)[within])
            reverse = self._task.reverse_complement and int(hash64(self._config.seed, _STRAND, number)) & 1
            found.append(Reading(train, row, bool(reverse)))
        return sorted(found, key=lambda reading: -reading.length)

    def _order_uncached(self, epoch: int) -> NDArray[np.int64]:
        return permutation(len(self.sets.train), self._config.seed, _ORDER, epoch)

    def _scored(self, chosen: list[Reading]) -> float:
        """The sum of the weights of a step's losses."""
        weights, targets = self.sets.class_weights, np.concatenate([np.atleast_1d(each.target) for each in chosen])
        if self._task.kind in ("multilabel", "regression"):
            known = ~np.isnan(targets)
            if weights is None:
                return float(known.sum()) or 1.0
            each = np.where(targets == 1, np.tile(weights, len(chosen)), 1.0)
            return float(each[known].sum(dtype=np.float64)) or 1.0
        labels = targets[targets != UNLABELLED].astype(np.int64)
        return float(len(labels) if weights is None else weights[labels].sum(dtype=np.float64)) or 1.0

    def held_out(self, context_length: int) -> list[Reading]:
        """The validation set; on both strands if those are averaged."""
        return readings(self.sets.valid, self._task.reverse_complement)

    def length(self, samples: Sequence[Reading], plan: StagePlan) -> int:
        """The smallest bucket that holds all of `samples`; for longer ones than any in training, what they need."""
        longest = max(reading.length for reading in samples)
        ranks = plan.config.sequence_parallel
        for bucket in (*self._task.buckets, plan.config.context_length):
            if longest <= bucket and bucket % ranks == 0 and bucket // ranks > 1:
                return bucket
        return rounded_up(longest, ranks)

    def read(
        self, samples: Sequence[Reading | None], numbers: list[int], context_length: int, part: Slice
    ) -> MicroBatch:
        """Tokens of this rank's slice, padded on the right, and targets."""
        ids = torch.full((len(samples), part.length), PAD)
        lengths = torch.ones(len(samples), dtype=torch.int64)
        targets = self._no_targets(len(samples), part.length)
        here = slice(part.offset, part.offset + part.length)
        for row, sample in enumerate(samples):
            if sample is None:
                continue
            tokens, target = sample.tokens[here], sample.target
            ids[row, : len(tokens)], lengths[row] = torch.from_numpy(tokens.astype(np.int64)), sample.length
            if self._task.kind == "per_base":
                targets[row, : len(tokens)] = torch.from_numpy(target[here].astype(np.int64))
            elif self._task.kind == "regression":
                mean, deviation = self.sets.scale
                targets[row] = torch.from_numpy((np.atleast_1d(target) - mean) / deviation)
            else:
                targets[row] = torch.as_tensor(target)
        return MicroBatch(ids, targets, torch.tensor(numbers), lengths)

    def _no_targets(self, rows: int, tokens: int) -> Tensor:
        if self._task.kind in ("multilabel", "regression"):
            return torch.full((rows, self.sets.outputs), torch.nan)
        return torch.full((rows, tokens) if self._task.kind == "per_base" else (rows,), UNLABELLED)

    def quality(self, loss: float, sums: Sequence[float] = ()) -> dict[str, float]:
        """The loss alone; what else a validation measures is in `measures`."""
        return {"loss": loss}

    def measures(self, samples: Sequence[Reading], predictions: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """All metrics of the kind; where both strands are read, of the mean of their outputs, and the loss of that."""
        data, kind = samples[0].data, self._task.kind
        outputs = outputs_of(data, samples, predictions)
        measured = measures(kind, data, [predictions_of(kind, each, self._scale) for each in outputs])
        if self._task.reverse_complement:
            measured["loss"] = mean_loss(kind, data, outputs, self._scale)
        return measured

    @property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return self.sets.scale if self._task.kind == "regression" else None

    def test(self) -> list[Reading]:
        """The test set, read now; nothing without one. Raises UserError."""
        if self._task.test is None:
            return []
        data = read_test(self._task, self.sets.train.classes)
        check_lengths(data, self._config.model.maximum_context, "model.maximum_context", self.sets.around)
        self._tested = readings(data, self._task.reverse_complement)
        return self._tested

    def tested(
        self, step: int, predictions: Sequence[NDArray[np.float32]], directory: Path
    ) -> tuple[dict[str, Any], list[str]]:
        """Metrics of the test set, its size and digest; the predictions go into test_predictions.tsv."""
        data = self._tested[0].data
        outputs = outputs_of(data, self._tested, predictions)
        return record_test(self._task, data, outputs, self._scale, step, directory)

    def conclude(self, context_length: int, quality: dict[str, float]) -> Conclusion:
        """The selected validation, in a line."""
        name = self.best[0]
        shown = ", ".join(f"{column} {value:.4f}" for column, value in quality.items() if value is not None)
        return Conclusion(
            {"selected_by": name, "classes": self.sets.train.classes},
            [f"best validation by {name}, {len(self.sets.valid):,} sequences: {shown}"],
        )

    def exported(self, parameters: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The model under the published names, the head beside it, and what the head's outputs are."""
        sources, header = published_sources(self._config.model)
        heads = {name: name for name in parameters if name.startswith(f"{HEAD}.")}
        scale = None if self._scale is None else (self._scale[0].tolist(), self._scale[1].tolist())
        said = head_header(self._task.kind, self._task.head.pool, self.sets.train.classes, scale)
        return sources | heads, header | said


def _cut(part: Slice, length: int) -> Slice:
    """This rank's slice of sequences of which every rank of the group holds `length` tokens."""
    return Slice(part.row, part.offset // part.length * length, length)
