"""Outputs of a labelled sequence: a head over its pooled states, or over the state of every base, and their loss.

    token_ids_Bl --backbone--> hidden_BlD --pool--> state_BD --head--> output_BK --loss--> sum of this rank's losses
                                        (per_base: none)         output_BlK

A sequence's loss belongs to the first rank of its sequence group; a base's to the rank that has the base.

B batch, l local length, D width, K outputs: classes, or numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.config.task import HeadConfig, TaskConfig
from hyena_ds.data.loader import MicroBatch
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.pooling import POOLS, pool
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.task import Objective

_INIT_STD = 0.02


class Head(nn.Module):
    """(..., D) -> (..., K): linear, or with one hidden layer."""

    def __init__(self, width: int, outputs: int, config: HeadConfig, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(width, config.hidden) if config.hidden else None
            self.output = nn.Linear(config.hidden or width, outputs)
            for layer in (self.hidden, self.output):
                if layer is not None:
                    nn.init.normal_(layer.weight, std=_INIT_STD if layer is self.output else layer.in_features**-0.5)
                    nn.init.zeros_(layer.bias)

    def forward(self, state_D: Tensor) -> Tensor:
        """Any shape whose last dim is the width."""
        if self.hidden is not None:
            state_D = F.gelu(self.hidden(state_D), approximate="tanh")
        output_K: Tensor = self.output(state_D)
        return output_K


class LabelledObjective(Objective):
    """The loss of a labelled set.

    classification: cross-entropy of a sequence's class; per_base: of a base's; multilabel: binary cross-entropy of every output
    that was measured; regression: squared error of every number, in standard deviations of the train set.
    """

    def __init__(self, model: HyenaDNA, task: TaskConfig, outputs: int, seed: int, class_weights: Tensor | None = None):
        """`class_weights` (C,), or (K,) of the positives of outputs, count in training alone: there the loss is a weighted mean."""
        super().__init__()
        self.backbone = model.backbone
        self.head = Head(model.config.width, outputs, task.head, seed)
        self.kind, self.pooling, self.rate_scale = task.kind, POOLS[task.head.pool], task.head.rate_scale
        self.begin = task.prompt_tokens
        self.frozen = task.frozen != "false"
        self.backbone.requires_grad_(not self.frozen)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: MicroBatch, call: ForwardPass) -> tuple[Tensor, Tensor, Tensor]:
        """(loss sum, [sum of the losses' weights], outputs without a gradient) of this rank's part of a micro batch."""
        if self.frozen:
            call = replace(call, dropout=None)
        hidden_BlD = self.backbone(self.inputs(batch.token_ids_Bl, call.layout), call)
        return self.scored(hidden_BlD, batch, call.layout)

    def inputs(self, token_ids_Bl: Tensor, layout: Layout) -> Tensor:
        """What the backbone is given of this rank's tokens: their ids (B, l), or embeddings (B, l, D)."""
        return token_ids_Bl

    def scored(self, hidden_BlD: Tensor, batch: MicroBatch, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, of the states. Collective."""
        if self.kind == "per_base":
            output_BlK = self.head(hidden_BlD)
            loss, count = self._of_classes(output_BlK.flatten(0, 1), batch.targets.flatten())
            return loss, count.double().view(1), output_BlK.detach()
        output_BK = self.head(pool(hidden_BlD, self.pooling, layout, batch.lengths_B, self.begin))
        if self.kind == "classification":
            loss, count = self._of_classes(output_BK, batch.targets)
        else:
            loss, count = self._of_numbers(output_BK, batch.targets)
        mine = float(layout.exchange.index == 0)
        return loss * mine, count.double().view(1) * mine, output_BK.detach()

    def _of_classes(self, output_nC: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.class_weights if torch.is_grad_enabled() else None
        loss = F.cross_entropy(output_nC.float(), target_n, weights, ignore_index=UNLABELLED, reduction="sum")
        known_n = target_n != UNLABELLED
        return loss, known_n.sum() if weights is None else (weights[target_n.clamp(min=0)] * known_n).sum()

    def _of_numbers(self, output_BK: Tensor, target_BK: Tensor) -> tuple[Tensor, Tensor]:
        weight_BK = (~target_BK.isnan()).float()
        target_BK = target_BK.nan_to_num(0.0)
        if self.kind == "multilabel":
            losses_BK = F.binary_cross_entropy_with_logits(output_BK.float(), target_BK, reduction="none")
            if self.class_weights is not None and torch.is_grad_enabled():
                weight_BK = weight_BK * torch.where(target_BK == 1, self.class_weights, 1.0)
        else:
            losses_BK = (output_BK.float() - target_BK) ** 2
        return (losses_BK * weight_BK).sum(), weight_BK.sum()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """As of every objective; the head, which has a rate of its own, apart."""
        own = {id(parameter) for parameter in self.head.parameters()}
        groups = super().groups(weight_decay)
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        head = {"params": [*self.head.parameters()], "weight_decay": weight_decay, "rate_scale": self.rate_scale}
        return [group for group in (*groups, head) if group["params"]]
