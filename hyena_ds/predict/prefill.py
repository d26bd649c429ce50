"""What a prompt leaves for the tokens after it: one forward pass, on one rank or on a grid.

    prompt --Predictor, whose blocks are watched--> u of each layer --FFT--> what it gives to the next N positions
                                                --> the last two projections, for the short filter
                                                --> logits after the last token

On a grid every rank makes this of the channels and tokens that it has; one of them, the owner, gets them all. Besides the
forward pass a rank holds one layer's u, and N positions of all layers.

L prompt, N positions to come, l tokens of this rank, D width, d = D / P channels of this rank, C = 3 D, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.ops.layer_norm import layer_norm
from hyena_ds.ops.online_convolution import continuation
from hyena_ds.ops.short_convolution import HALO
from hyena_ds.predict.predictor import Predictor


class Prefix(NamedTuple):
    """A prompt's state; `layers` is the model's."""

    ahead_RN: Tensor
    """What the prompt gives to the long convolutions at the next N positions; R = layers D channels, a layer after the
    other."""
    projected_2sC: Tensor
    """Projections of the prompt's last two tokens, (2, layers, C); zeros where it has one."""
    logits_V: Tensor
    """Logits of the first token to come."""


@torch.no_grad()
def prefill(predictor: Predictor, token_ids_L: Tensor, tokens: int, owner: int = 0) -> Prefix | None:
    """The state after a prompt, for as many `tokens` to come; on the rank `owner` of the sequence group, elsewhere None.

    Collective. Raises UserError where prompt and tokens do not fit into the model's maximum context.
    """
    L = token_ids_L.shape[0]
    check_fits(predictor.model.config.maximum_context, L, tokens)
    filters_dT = predictor.filters(L + tokens)
    layout, exchange = predictor.layout(L), predictor.exchange
    ahead: list[Tensor] = []
    projected: list[Tensor] = []

    def here(token: int) -> bool:
        return 0 <= token - layout.offset < layout.local_length and token >= 0

    def watch(r_BlD: Tensor, u_BDl: Tensor) -> None:
        layer = len(ahead)
        u_BdL = exchange.to_channels(u_BDl)[..., :L]
        ahead.append(continuation(u_BdL, filters_dT[layer], tokens)[0])
        weights = predictor.blocks[layer].operator_weights()
        last = [r_BlD[0, t - layout.offset] if here(t) else None for t in range(L - HALO, L)]
        for r_D in last:
            p_C = r_BlD.new_zeros(weights.in_bias.shape)
            if r_D is not None:
                x_D = layer_norm(r_D.unsqueeze(0), weights.norm_weight, weights.norm_bias).x
                weight = weights.in_weight.to(predictor.precision)
                p_C += F.linear(x_D.to(weight.dtype), weight)[0].float() + weights.in_bias
            projected.append(p_C)

    hidden_lD = predictor.hidden(token_ids_L.unsqueeze(0), watch=watch)[0]
    embedding = predictor.model.backbone.embedding.weight
    logits_V = embedding.new_zeros(embedding.shape[0])
    if here(L - 1):
        logits_V += F.linear(hidden_lD[-1], embedding)
    layers, few = len(ahead), torch.cat([*projected, logits_V])
    ahead_RN = predictor.gathered(torch.stack(ahead), owner)
    of_ranks = predictor.gathered(few, owner)
    if not of_ranks:
        return None
    few = torch.stack(of_ranks).sum(0)  # each number is of one rank, and zero on the others
    projected_2sC = few[: -logits_V.numel()].view(layers, HALO, -1).transpose(0, 1)
    return Prefix(torch.cat(ahead_RN, 1).flatten(0, 1), projected_2sC, few[-logits_V.numel() :])


def check_fits(
    context: int, prompt: int, tokens: int, where: str = "", limit: str = "the model's maximum_context"
) -> None:
    """Raise UserError where a prompt and so many tokens after it are longer than a context, which `limit` names."""
    if prompt + tokens > context:
        raise UserError(
            f"{where}found a prompt of {prompt:,} bases and {tokens:,} to generate, wanted at most {context:,} together, "
            f"{limit}; shorten the prompt, generate fewer, or extend the model"
        )
