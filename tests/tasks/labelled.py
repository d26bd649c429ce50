"""A labelled Task: sequences of several lengths, each with one of three classes, through a pooled state and a head.

Whatever a Task may be that the next token is not: a loss of whole sequences, padding, a head, frozen parameters, a metric
beside the loss, another learning rate for the head, and a soft prompt, trained and added to the embeddings of the first tokens.

B batch, l local length, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import MicroBatch, Slice, StepBatch
from hyena_ds.data.stream import row_samples
from hyena_ds.genome.tokenizer import PAD, A, C, G, T
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.pooling import Pooling, pool
from hyena_ds.parallel.devices import Compute
from hyena_ds.tasks.task import Conclusion, Objective, Task
from hyena_ds.weights.published import published_tensors

CLASSES = 3
FROZEN = "backbone.blocks.0.mlp.up."
"""What a run of the task leaves as it is."""
PROMPT = 3
"""Tokens that the prompt is added to."""
NOTHING = -100
"""Label of what is padding."""


class Labelled(Objective):
    """Cross-entropy of each sequence's class."""

    def __init__(self, model: HyenaDNA, pooling: Pooling = "mean", frozen: tuple[str, ...] = ()):
        """Parameters whose name begins with one of `frozen` stand still."""
        super().__init__()
        self.pooling = pooling
        self.backbone = model.backbone
        self.prompt = nn.Parameter(torch.linspace(-1, 1, PROMPT * model.config.width).view(PROMPT, -1).cos() / 10)
        self.head = nn.Linear(model.config.width, CLASSES)
        weight = torch.linspace(-0.5, 0.5, self.head.weight.numel()).view_as(self.head.weight)
        self.head.weight.data.copy_(weight.sin())
        self.head.bias.data.zero_()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen or ("nothing",)))

    def forward(self, batch: MicroBatch, call: ForwardPass) -> tuple[Tensor, Tensor]:
        hidden_BlD = self.backbone(self.prompted(batch.token_ids_Bl, call.layout.offset), call)
        logits = self.head(pool(hidden_BlD, self.pooling, call.layout, batch.lengths_B))
        mine = float(call.layout.exchange.index == 0)
        loss = F.cross_entropy(logits, batch.targets, ignore_index=NOTHING, reduction="sum")
        there = batch.targets != NOTHING
        right = (logits.argmax(1) == batch.targets) & there
        return loss * mine, torch.stack((there.sum(), right.sum())).double() * mine

    def prompted(self, token_ids_Bl: Tensor, offset: int) -> Tensor:
        """Embeddings (B, l, D) of a slice that begins at token `offset`. Every rank's hang on the prompt, with or without a part."""
        position_l = torch.arange(offset, offset + token_ids_Bl.shape[1], device=token_ids_Bl.device)
        prompt_lD = self.prompt[position_l.clamp(max=PROMPT - 1)] * (position_l < PROMPT)[:, None]
        return self.backbone.embedding(token_ids_Bl) + prompt_lD

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        head = {"params": list(self.head.parameters()), "weight_decay": 0.0, "rate_scale": 2.0}
        names = {id(parameter) for parameter in self.head.parameters()}
        others = super().groups(weight_decay)
        for group in others:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in names]
        return [group for group in (*others, head) if group["params"]]


def sequence(number: int, context_length: int) -> tuple[Tensor, int]:
    """Token ids and class of sample `number`: random bases, of which one class has more of A, C or G."""
    generator = torch.Generator().manual_seed(number)
    label = number % CLASSES
    length = context_length - int(torch.randint(0, context_length // 2, (1,), generator=generator))
    shares = torch.ones(4)
    shares[label] += 2
    return torch.tensor([A, C, G, T])[torch.multinomial(shares, length, True, generator=generator)], label


def read(samples: Sequence[int | None], numbers: list[int], context_length: int, part: Slice) -> MicroBatch:
    ids = torch.full((len(samples), context_length), PAD)
    labels, lengths = torch.full((len(samples),), NOTHING), torch.ones(len(samples), dtype=torch.int64)
    for row, sample in enumerate(samples):
        if sample is not None:
            tokens, label = sequence(sample, context_length)
            ids[row, : len(tokens)], labels[row], lengths[row] = tokens, label, len(tokens)
    here = slice(part.offset, part.offset + part.length)
    return MicroBatch(ids[:, here].contiguous(), labels, torch.tensor(numbers), lengths)


class LabelledTask(Task):
    """Endless training samples, and as many held-out ones as the config's validation has windows."""

    sums = ("right",)
    unit = "nats a sequence"
    counted = "sequences"
    headline = ("loss", "accuracy")
    held_out_name = "sequences"
    best = ("accuracy", False)

    def __init__(self, config: RunConfig):
        self._config = config

    def objective(self) -> Labelled:
        return Labelled(build_model(self._config.model, self._config.seed), "mean", (FROZEN,))

    def initialize(self, objective: Objective) -> None:
        raise AssertionError("no run of these tests initialises")

    def check_data(self, compute: Compute) -> ShardList:
        return ShardList(())

    def write_order(self, file: Path) -> None:
        file.write_text(json.dumps({"order": "by number"}) + "\n")

    def steps(self, plan: StagePlan, part: Slice, from_step: int) -> Iterator[StepBatch]:
        for step in range(from_step, plan.end_step):
            chosen, micro_batches = self.samples(step), []
            for micro_step in range(plan.accumulation):
                numbers, mine = row_samples(chosen, plan, part.row, micro_step)
                micro_batches.append(read(mine, numbers, plan.config.context_length, part))
            yield StepBatch(step, micro_batches, len(chosen))

    def samples(self, step: int) -> list[int]:
        return [1000 * step + number for number in range(self._config.schedule[0].sequences)]

    def held_out(self, context_length: int) -> list[int]:
        return [10**6 + number for number in range(self._config.validation.windows)]

    def read(self, samples: Sequence[Any], numbers: list[int], context_length: int, part: Slice) -> MicroBatch:
        return read(samples, numbers, context_length, part)

    def quality(self, loss: float, sums: Sequence[float] = ()) -> dict[str, float]:
        return {"loss": loss, "accuracy": sums[0]}

    def conclude(self, context_length: int, quality: dict[str, float]) -> Conclusion:
        return Conclusion({"chance": 1 / CLASSES}, [f"accuracy {quality['accuracy']:.4f}"])

    def exported(self, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, header = published_tensors(self._config.model, parameters)
        heads = {name: tensor for name, tensor in parameters.items() if name.startswith("head.")}
        return tensors | heads, header
