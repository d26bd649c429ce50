"""The 3-tap causal depth-wise convolution, on token-major activations.

    y[t] = w[0] x[t-2] + w[1] x[t-1] + w[2] x[t] + b        x_BlC with its two predecessors (halo_B2C) -> y_BlC

Three multiply-adds over shifted views are faster than a general convolution and need no transpose.

B batch, l local length, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALO = 2
"""Tokens of the left neighbour that a token needs: taps - 1."""


def short_convolution(halo_B2C: Tensor, x_BlC: Tensor, weight_C13: Tensor, bias_C: Tensor) -> Tensor:
    """Weights as in the published `short_filter`: (C, 1, 3), the last tap for the token itself."""
    length = x_BlC.shape[1]
    x = torch.cat((halo_B2C, x_BlC), dim=1)
    w0, w1, w2 = weight_C13[:, 0].unbind(-1)
    y_BlC = torch.addcmul(bias_C, x[:, 2:], w2)
    y_BlC = torch.addcmul(y_BlC, x[:, 1 : length + 1], w1)
    return torch.addcmul(y_BlC, x[:, :length], w0)
