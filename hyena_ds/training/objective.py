"""What a step minimises: (sum of losses, number of scored targets) of one micro batch.

The trainer asks nothing else of an objective; a classification head or a masked loss is another module like this one.
"""

from __future__ import annotations

from torch import Tensor, nn

from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout


class NextToken(nn.Module):
    """Cross-entropy of the next token, in nats. This module is what the DeepSpeed engine wraps."""

    def __init__(self, model: HyenaDNA):
        super().__init__()
        self.model = model

    def forward(
        self, token_ids_Bl: Tensor, targets_Bl: Tensor, layout: Layout, dropout: DropoutKey | None = None
    ) -> tuple[Tensor, Tensor]:
        """(loss sum, scored count) of this rank's slice, both scalars; only the first carries a gradient."""
        logits_BlV = self.model(token_ids_Bl, layout, dropout)
        return summed_cross_entropy(logits_BlV, targets_Bl), (targets_Bl != IGNORED).sum()
