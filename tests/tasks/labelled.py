"""A labelled objective: sequences of several lengths, each with one of three classes, through a pooled state and a head.

Whatever an objective may be that the next token is not: a loss of whole sequences, padding, a head, frozen parameters, a metric
beside the loss, another learning rate for the head, and a soft prompt, trained and added to the embeddings of the first tokens.

B batch, l local length, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.data.loader import MicroBatch, Slice
from hyena_ds.genome.tokenizer import PAD, A, C, G, T
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.pooling import Pooling, pool
from hyena_ds.tasks.task import Objective

CLASSES = 3
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
