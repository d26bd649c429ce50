"""Next-token loss, summed, in float32.

B batch, l local length, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target of a position that is not scored."""


def summed_cross_entropy(logits_BlV: Tensor, targets_Bl: Tensor) -> Tensor:
    """Sum of the token losses in nats over scored positions, a float32 scalar.

    A slice without a scored position gives 0 with a graph, so that its backward runs the same collectives.
    """
    return F.cross_entropy(
        logits_BlV.float().flatten(0, 1), targets_Bl.flatten(), ignore_index=IGNORED, reduction="sum"
    )
