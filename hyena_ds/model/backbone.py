"""HyenaDNA: embedding, blocks, final norm; and the language model with the tied head.

    token_ids_Bl --embedding--> residual --block x layers--> --norm--> hidden_BlD --embedding transposed--> logits_BlV

Plain PyTorch. All that is not the operator is pointwise in the sequence and written for one device.

B batch, l local length, D width, V vocabulary (16).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyena_ds.config.model import ModelConfig
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.model.block import Block
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.layer_norm import NORM_EPSILON
from hyena_ds.ops.tiles import tiles
from hyena_ds.parallel.layout import Layout

_INIT_STD = 0.02


class Backbone(nn.Module):
    """Token ids to hidden states after the final norm; callable without a head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding_dropout = config.embedding_dropout
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)

    def forward(self, inputs: Tensor, call: ForwardPass | None = None) -> Tensor:
        """Token ids (B, l), or what they would be embedded as, (B, l, D) -> (B, l, D).

        By default the whole sequence is here and nothing is dropped.
        """
        hidden_BlD: Tensor = self.final_norm(self.residual(inputs, call))
        return hidden_BlD

    def residual(self, inputs: Tensor, call: ForwardPass | None = None, blocks: int | None = None) -> Tensor:
        """The residual after so many blocks, all by default, before the final norm: (B, l) or (B, l, D) -> (B, l, D) float32."""
        call = call or ForwardPass(Layout.whole(inputs.shape[1]))
        residual_BlD = self._embedded(inputs, call)
        for block in self.blocks[:blocks]:
            residual_BlD = block(residual_BlD, call)
        return residual_BlD

    def _embedded(self, inputs: Tensor, call: ForwardPass) -> Tensor:
        if call.kernels is not None and call.kernels.embed is not None and not inputs.is_floating_point():
            return call.kernels.embed(inputs, self.embedding.weight, self.embedding_dropout, call)
        # No name for what is embedded: it would be held beside the blocks' residuals.
        residual_BlD: Tensor = _EmbeddingDropout.apply(  # type: ignore[no-untyped-call, unused-ignore]
            inputs if inputs.is_floating_point() else self.embedding(inputs), self.embedding_dropout, call
        )
        return residual_BlD


class HyenaDNA(nn.Module):
    """The language model: logits over 16 columns, the head tied to the embedding."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)

    def forward(self, token_ids_Bl: Tensor, call: ForwardPass | None = None) -> Tensor:
        """(B, l) -> logits (B, l, 16)."""
        return F.linear(self.backbone(token_ids_Bl, call), self.backbone.embedding.weight)


class _EmbeddingDropout(torch.autograd.Function):
    """In tiles, and the mask drawn again in backward: a mask's 64-bit words are several times the residual."""

    @staticmethod
    def forward(ctx: Any, x_BlD: Tensor, probability: float, call: ForwardPass) -> Tensor:
        ctx.probability, ctx.call = probability, call
        return _drop_in_tiles(x_BlD, probability, call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BlD: Tensor) -> tuple[Tensor, None, None]:
        return _drop_in_tiles(dx_BlD, ctx.probability, ctx.call), None, None


def _drop_in_tiles(x_BlD: Tensor, probability: float, call: ForwardPass) -> Tensor:
    if call.dropout is None or probability == 0.0:
        return x_BlD
    B, l, D = x_BlD.shape
    out_BlD = torch.empty_like(x_BlD)
    for tile in tiles(B, l, 2 * D * call.pieces(x_BlD.device), x_BlD.device):
        out_BlD[tile.here] = call.drop(x_BlD[tile.here], tile, 0, probability)
    return out_BlD


def build_model(config: ModelConfig, seed: int) -> HyenaDNA:
    """A model with HyenaDNA's initialisation: a function of config and seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HyenaDNA(config)
        _initialize(model, config.layers)
    return model


@torch.no_grad()
def _initialize(model: HyenaDNA, layers: int) -> None:
    """Linear and embedding N(0, 0.02), biases 0, outputs of half-blocks scaled by 1/sqrt(2 layers), skip N(0, 1)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.backbone.blocks:
        assert isinstance(block, Block)
        for output in (block.operator.out_projection, block.mlp.down):
            nn.init.normal_(output.weight, std=_INIT_STD / math.sqrt(2 * layers))
        bound = 1.0 / math.sqrt(block.operator.short_filter.weight.shape[-1])
        nn.init.uniform_(block.operator.short_filter.weight, -bound, bound)
        nn.init.uniform_(block.operator.short_filter.bias, -bound, bound)
        nn.init.normal_(block.operator.skip)
