"""Layer norm over the channels of a tile, and its backward, in float32.

B batch, n tokens of the tile, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NORM_EPSILON = 1e-5


class Normed(NamedTuple):
    """The normed tile and the statistics that backward needs."""

    x: Tensor
    mean: Tensor
    rstd: Tensor


def layer_norm(r_BnD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Normed:
    """x = (r - mean) rstd weight + bias over the last dim."""
    return Normed(*torch.native_layer_norm(r_BnD, r_BnD.shape[-1:], weight_D, bias_D, NORM_EPSILON))


def layer_norm_backward(
    dx_BnD: Tensor, r_BnD: Tensor, normed: Normed, weight_D: Tensor, bias_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias."""
    dr_BnD, dweight_D, dbias_D = torch.ops.aten.native_layer_norm_backward(
        dx_BnD, r_BnD, r_BnD.shape[-1:], normed.mean, normed.rstd, weight_D, bias_D, [True, True, True]
    )
    return dr_BnD, dweight_D, dbias_D
