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
    dx_BnD: Tensor, r_BnD: Tensor, normed: Normed, weight_D: Tensor, bias_D: Tensor, dweight_D: Tensor, dbias_D: Tensor
) -> Tensor:
    """Gradient of the input; those of weight and bias are added to `dweight` and `dbias`."""
    dr_BnD, of_weight_D, of_bias_D = torch.ops.aten.native_layer_norm_backward(
        dx_BnD, r_BnD, r_BnD.shape[-1:], normed.mean, normed.rstd, weight_D, bias_D, [True, True, True]
    )
    dweight_D.add_(of_weight_D)
    dbias_D.add_(of_bias_D)
    return dr_BnD  # type: ignore[no-any-return, unused-ignore]
