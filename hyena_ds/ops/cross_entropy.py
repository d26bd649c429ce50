"""Final norm, tied head and next-token loss over tiles of tokens; the gradient is made in the forward pass.

    r --norm--> x --embedding transposed--> logits --> loss sum           (and at once dr, d embedding, d norm)

Logits exist for one tile at a time, in float32, and what backward needs is what it returns: nothing is recomputed. Without
a gradient wanted none is made.

B batch, l local length, D width, V vocabulary, n tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyena_ds.ops import place
from hyena_ds.ops.large import empty_like
from hyena_ds.ops.layer_norm import layer_norm, layer_norm_backward
from hyena_ds.ops.products import without_autocast
from hyena_ds.ops.sizes import LOSS_PIECES
from hyena_ds.ops.tiles import tiles

IGNORED = -100
"""Target of a position that is not scored."""


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, tuple[Tensor, ...] | None]]
"""(r, norm weight, norm bias, embedding, targets, whether gradients are wanted) -> (loss sum, gradients of the first four)."""


def summed_cross_entropy(
    r_BlD: Tensor,
    norm_weight_D: Tensor,
    norm_bias_D: Tensor,
    embedding_VD: Tensor,
    targets_Bl: Tensor,
    kernel: Kernel | None = None,
) -> Tensor:
    """Sum of the token losses in nats over scored positions, a float32 scalar.

    `r` is the residual before the final norm, `embedding` the tied head. A slice without a scored position gives 0 with a
    graph, so that its backward runs the same collectives. With a `kernel` that computes it, in place of tiles.
    """
    # Inside the function autograd is always off, so whether there will be a backward is found out here.
    wanted = torch.is_grad_enabled()
    weights = (norm_weight_D, norm_bias_D, embedding_VD)
    loss: Tensor = _SummedCrossEntropy.apply(r_BlD, *weights, targets_Bl, wanted, kernel)  # type: ignore[no-untyped-call, unused-ignore]
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r_BlD: Tensor,
        scale: Tensor,
        shift: Tensor,
        embedding: Tensor,
        targets_Bl: Tensor,
        wanted: bool,
        kernel: Kernel | None,
    ) -> Tensor:
        if kernel is not None:
            loss, ctx.gradients = kernel(r_BlD.contiguous(), scale, shift, embedding, targets_Bl.contiguous(), wanted)
            return loss.float()
        B, l, D = r_BlD.shape
        loss = r_BlD.new_zeros((), dtype=torch.float64)
        gradients = None
        if wanted:
            gradients = empty_like(r_BlD), *(torch.zeros_like(weight) for weight in (scale, shift, embedding))
        with without_autocast(r_BlD.device):
            pieces = LOSS_PIECES if place.on_device(r_BlD.device) else 1
            for tile in tiles(B, l, pieces * max(D, 4 * embedding.shape[0]), r_BlD.device):
                r_BnD, targets_n = r_BlD[tile.here], targets_Bl[tile.here].flatten()
                normed = layer_norm(r_BnD, scale, shift)
                x_nD = normed.x.flatten(0, 1)
                log_p_nV = F.log_softmax(torch.mm(x_nD, embedding.t()), dim=-1)
                loss += F.nll_loss(log_p_nV, targets_n, ignore_index=IGNORED, reduction="sum")
                if gradients is None:
                    continue
                dr_BlD, dscale, dshift, dembedding = gradients
                scored_n1 = (targets_n != IGNORED).unsqueeze(1)
                dlogits_nV = log_p_nV.exp_().scatter_add_(
                    1, targets_n.clamp_min(0).unsqueeze(1), -scored_n1.to(log_p_nV.dtype)
                )
                dlogits_nV *= scored_n1
                dembedding.addmm_(dlogits_nV.t(), x_nD)
                dx_BnD = torch.mm(dlogits_nV, embedding).view(r_BnD.shape)
                dr_BlD[tile.here] = layer_norm_backward(dx_BnD, r_BnD, normed, scale, shift, dscale, dshift)
                del normed, x_nD, log_p_nV, dlogits_nV, dx_BnD  # not beside those of the next tile
        ctx.gradients = gradients
        return loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss was back-propagated already; its gradient was made in the forward pass, once")
        return *(gradient.mul_(dloss) for gradient in gradients), None, None, None
