"""Heads of a HyenaDNA for labels, for the transformers library: of whole sequences, and of every base.

    hidden_BLD --pooled over the tokens that are there--> state_BD --[dense, gelu]--> --score--> logits_BK
               (of every base: as they are)

B batch, L tokens, D d_model, K num_labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_hyenadna import HyenaDNAConfig
from .modeling_hyenadna import HyenaDNAModel, HyenaDNAPreTrainedModel

POOLINGS = ("mean", "maximum", "last", "first")


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel):
    """One vector of `num_labels` for a sequence: a linear layer over the pooled states, or with one hidden layer before it."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__(config)
        if config.pooling not in POOLINGS:
            raise ValueError(f"pooling: found '{config.pooling}', wanted one of {', '.join(POOLINGS)}")
        self.num_labels = config.num_labels
        self.hyena = HyenaDNAModel(config)
        self.dense, self.score = _head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """`logits` (B, num_labels). Without an attention mask, [PAD] among the ids is padding.

        The loss is cross-entropy for labels (B,) of integers, squared error where `num_labels` is 1, and binary
        cross-entropy for (B, num_labels) of floats, unless `config.problem_type` says otherwise.
        """
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad_token_id
        outputs = self.hyena(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        logits = _scored(self, _pooled(outputs.last_hidden_state, attention_mask, self.config.pooling))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class HyenaDNAForTokenClassification(HyenaDNAPreTrainedModel):
    """One vector of `num_labels` for every base."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.hyena = HyenaDNAModel(config)
        self.dense, self.score = _head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """`logits` (B, L, num_labels). The loss is the cross-entropy of `labels` (B, L), -100 where a base has none."""
        outputs = self.hyena(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        logits = _scored(self, outputs.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def _head(config: HyenaDNAConfig) -> tuple[nn.Linear | None, nn.Linear]:
    dense = nn.Linear(config.d_model, config.head_hidden) if config.head_hidden else None
    return dense, nn.Linear(config.head_hidden or config.d_model, config.num_labels, bias=config.head_bias)


def _scored(model: HyenaDNAForSequenceClassification | HyenaDNAForTokenClassification, state_D: Tensor) -> Tensor:
    if model.dense is not None:
        state_D = F.gelu(model.dense(state_D), approximate="tanh")
    return model.score(state_D)


def _pooled(hidden_BLD: Tensor, attention_mask_BL: Tensor | None, pooling: str) -> Tensor:
    """(B, D), of the tokens that are there."""
    B, L, _ = hidden_BLD.shape
    there_BL1 = hidden_BLD.new_ones((B, L, 1)) if attention_mask_BL is None else attention_mask_BL.unsqueeze(2)
    if pooling == "mean":
        return (hidden_BLD * (there_BL1 != 0)).sum(1) / (there_BL1 != 0).sum(1).clamp(min=1)
    if pooling == "maximum":
        return hidden_BLD.masked_fill(there_BL1 == 0, float("-inf")).amax(1)
    place_L1 = torch.arange(L, device=hidden_BLD.device).unsqueeze(1)
    chosen_B11 = (place_L1 * (there_BL1 != 0)).amax(1, keepdim=True)
    if pooling == "first":
        chosen_B11 = torch.where(there_BL1 != 0, place_L1, L - 1).amin(1, keepdim=True)
    return hidden_BLD.gather(1, chosen_B11.expand(B, 1, hidden_BLD.shape[2])).squeeze(1)
