"""What a step minimises: (sum of losses, number of scored targets) of one micro batch.

The trainer asks nothing else of an objective; a classification head or a masked loss is another module like this one.
"""

from __future__ import annotations

from torch import Tensor, nn

from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy


class NextToken(nn.Module):
    """Cross-entropy of the next token, in nats. This module is what the DeepSpeed engine wraps."""

    def __init__(self, model: HyenaDNA):
        super().__init__()
        self.model = model

    def forward(self, token_ids_Bl: Tensor, targets_Bl: Tensor, run: ForwardPass) -> tuple[Tensor, Tensor]:
        """(loss sum, scored count) of this rank's slice, both scalars; only the first carries a gradient."""
        backbone = self.model.backbone
        residual_BlD = backbone.residual(token_ids_Bl, run)
        norm = backbone.final_norm
        loss = summed_cross_entropy(residual_BlD, norm.weight, norm.bias, backbone.embedding.weight, targets_Bl)
        return loss, (targets_Bl != IGNORED).sum()
