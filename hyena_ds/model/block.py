"""One block: pre-norm half-blocks with a float32 residual.

    r <- r + operator(norm(r));  r <- r + mlp(norm(r))

B batch, l local length, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.config.schema import ModelConfig
from hyena_ds.model.filter import ImplicitFilter
from hyena_ds.model.operator import HyenaOperator
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.parallel.layout import Layout

NORM_EPSILON = 1e-5


class MLP(nn.Module):
    """Two projections with a tanh-approximated GELU between them."""

    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.up = nn.Linear(width, inner_width)
        self.down = nn.Linear(inner_width, width)

    def forward(self, x_BlD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BlD), approximate="tanh"))


class Block(nn.Module):
    """(B, l, D) -> (B, l, D)."""

    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        self.number = number
        self.dropout = config.residual_dropout
        implicit_filter = ImplicitFilter(
            config.width,
            config.maximum_context,
            config.filter_features,
            config.filter_width,
            config.filter_frequency,
            config.filter_shift,
        )
        self.operator_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.operator = HyenaOperator(config.width, implicit_filter)
        self.mlp_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp = MLP(config.width, config.mlp_width)

    def forward(self, residual_BlD: Tensor, layout: Layout, dropout: DropoutKey | None) -> Tensor:
        mixed_BlD = self.operator(self.operator_norm(residual_BlD), layout)
        residual_BlD = residual_BlD + self._drop(mixed_BlD, dropout, 2 * self.number + 1, layout)
        inner_BlD = self.mlp(self.mlp_norm(residual_BlD))
        return residual_BlD + self._drop(inner_BlD, dropout, 2 * self.number + 2, layout)

    def _drop(self, x_BlD: Tensor, key: DropoutKey | None, layer: int, layout: Layout) -> Tensor:
        return keyed_dropout(x_BlD, self.dropout, key, layer, layout.offset)
