"""In-context learning: soft prompts before a sequence, demonstrations before it, and labels that are read as tokens.

    Shown.tokens_Bl --embedding; the prompt in the place of the first N--> x_BlD --backbone--> hidden_BlD
        --a head over the bases' pooled states, as in tasks/heads.py
        --logits of the label tokens--> output_BlK --at every label--> loss; at the sequence's end --> output_BK

The prompt is one parameter, whole on every rank; a rank embeds the part that its tokens have of it, so the gradients of the ranks
add up to the prompt's, as those of the embedding do. A label's loss belongs to the rank that has its [SEP].

B batch, l local length, D width, K classes, N tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.config.schema import RunConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.data.loader import MicroBatch, Slice
from hyena_ds.genome.tokenizer import decode
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.pooling import pool
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.demonstrations import Shown, Surroundings
from hyena_ds.tasks.heads import LabelledObjective
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.tasks.outcomes import Reading
from hyena_ds.tasks.task import Objective
from hyena_ds.weights.heads import PROMPT, prompt_header
from hyena_ds.weights.published import published_sources

_TRAIN, _VALID, _TEST = range(3)
"""What demonstrations are drawn for."""
_PROMPT_STD = 0.02
"""Standard deviation of the first weights; source: the published evaluation."""


class InContextObjective(LabelledObjective):
    """The loss of labelled sequences behind a prompt, or that of label tokens.

    A label token's loss is the cross-entropy of the class among the label tokens' logits. In training the labels of demonstrations
    count as much as that of the sequence; held-out sequences have their own alone.
    """

    def __init__(
        self,
        model: HyenaDNA,
        task: TaskConfig,
        outputs: int,
        seed: int,
        class_weights: Tensor | None,
        label_ids: tuple[int, ...],
    ):
        """`label_ids` (K,) are the tokens of the classes; none: a head reads."""
        super().__init__(model, task, outputs, seed, class_weights)
        self.label_ids_K: Tensor
        self.reads_tokens = bool(label_ids)
        if self.reads_tokens:
            del self.head
        self.register_buffer("label_ids_K", torch.tensor(label_ids), persistent=False)
        self.prompt: nn.Parameter | None = None
        if self.begin:
            generator = torch.Generator().manual_seed(seed)
            weight_ND = torch.randn(self.begin, model.config.width, generator=generator)
            self.prompt = nn.Parameter(weight_ND * _PROMPT_STD)

    def inputs(self, token_ids_Bl: Tensor, layout: Layout) -> Tensor:
        """Ids (B, l); with a prompt embeddings (B, l, D), which hang on it on every rank, whether or not it has a part there."""
        if self.prompt is None:
            return token_ids_Bl
        B, l = token_ids_Bl.shape
        first, n = min(layout.offset, self.begin), min(max(self.begin - layout.offset, 0), l)
        prompt_BnD = self.prompt[first : first + n].expand(B, n, -1)
        embedding: nn.Embedding = self.backbone.embedding
        return torch.cat((prompt_BnD, embedding(token_ids_Bl[:, n:])), 1)

    def scored(self, hidden_BlD: Tensor, batch: MicroBatch, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(loss sum, [sum of the losses' weights], outputs of the sequences without a gradient). Collective."""
        if not self.reads_tokens:
            return super().scored(hidden_BlD, batch, layout)
        output_BlK = F.linear(hidden_BlD, self.backbone.embedding.weight[self.label_ids_K])
        loss, count = self._of_classes(output_BlK.flatten(0, 1), batch.targets.flatten())
        last_BK = pool(output_BlK.detach(), "last", layout, batch.lengths_B)
        return loss, count.double().view(1), last_BK

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """As of every objective, where there is no head."""
        if not self.reads_tokens:
            return super().groups(weight_decay)
        return [group for group in Objective.groups(self, weight_decay) if group["params"]]


class InContextTask(LabelledTask):
    """Labelled sequences with what `task.prompt`, `task.demonstrations` and `task.label_tokens` put around them."""

    def __init__(self, config: RunConfig):
        super().__init__(config)
        if self._task.reads_tokens:
            self.unit, self.counted = "nats a label", self.counted.replace("sequences", "labels")

    @cached_property
    def _surroundings(self) -> Surroundings:
        return Surroundings(self._task, self.sets.pool, self._config.seed)

    def objective(self) -> InContextObjective:
        """A model with the first weights of the config's seed, and a prompt or a head if the task has them."""
        config, weights = self._config, self.sets.class_weights
        return InContextObjective(
            build_model(config.model, config.seed),
            self._task,
            self.sets.outputs,
            config.seed,
            None if weights is None else torch.from_numpy(weights),
            self._surroundings.label_ids,
        )

    def samples(self, step: int) -> list[Reading]:
        """The sequences of a step with what stands around them, the longest first."""
        chosen = enumerate(super().samples(step))
        return _sorted([self._surroundings.of(each, _TRAIN, step, place) for place, each in chosen])

    def held_out(self, context_length: int) -> list[Reading]:
        """The validation set; a sequence has the same demonstrations every time, and on both strands."""
        found = super().held_out(context_length)
        return _sorted([self._surroundings.of(each, _VALID, each.number) for each in found])

    def test(self) -> list[Reading]:
        """The test set, read now, behind demonstrations of the train set. Raises UserError."""
        found = super().test()
        self._tested = _sorted([self._surroundings.of(each, _TEST, each.number) for each in found])
        return self._tested

    def read(
        self, samples: Sequence[Reading | None], numbers: list[int], context_length: int, part: Slice
    ) -> MicroBatch:
        """Tokens of this rank's slice, padded on the right, and targets: of label tokens (B, l), the class where one is predicted."""
        batch = super().read(samples, numbers, context_length, part)
        empty_B = torch.tensor([sample is None for sample in samples])
        assert batch.lengths_B is not None
        lengths_B = batch.lengths_B.masked_fill(empty_B, self._task.prompt_tokens + 1)  # pooling needs a base
        if not self._task.reads_tokens:
            return MicroBatch(batch.token_ids_Bl, batch.targets, batch.samples_B, lengths_B)
        targets_Bl = torch.full_like(batch.token_ids_Bl, UNLABELLED)
        for row, sample in enumerate(samples):
            for position, label in self._scored_labels(sample):
                if part.offset <= position < part.offset + part.length:
                    targets_Bl[row, position - part.offset] = label
        return MicroBatch(batch.token_ids_Bl, targets_Bl, batch.samples_B, lengths_B)

    def _scored_labels(self, sample: Reading | None) -> list[tuple[int, int]]:
        if not isinstance(sample, Shown):
            return []
        return sample.labels if sample.data is self.sets.train else sample.labels[-1:]

    def _scored(self, chosen: list[Reading]) -> float:
        if not self._task.reads_tokens:
            return super()._scored(chosen)
        labels = np.array([label for each in chosen for _, label in self._scored_labels(each)])
        weights = self.sets.class_weights
        return float(len(labels) if weights is None else weights[labels].sum(dtype=np.float64)) or 1.0

    def exported(self, parameters: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """The model, with a head if there is one; the prompt, and what else stands around a sequence."""
        task, ids = self._task, np.array(self._surroundings.label_ids, dtype=np.uint8)
        if task.reads_tokens:
            sources, header = published_sources(self._config.model)
        else:
            sources, header = super().exported(parameters)
        if "prompt" in parameters:
            sources = sources | {PROMPT: "prompt"}
        return sources, header | prompt_header(task.prompt_tokens, task.shots, decode(ids), self.sets.train.classes)


def _sorted(found: Sequence[Reading]) -> list[Reading]:
    return sorted(found, key=lambda reading: -reading.length)
