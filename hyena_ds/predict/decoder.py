"""One token after the other, each for what it costs alone: the long convolution goes on where the prompt ended.

    Prefix of each prompt --Decoder.start--> Decoding --step(token ids)--> logits of the next token

The state of a layer: the short filter's last two projections, and the online convolution's line of inputs and outputs
(ops/online_convolution.py), all layers in one tensor. A step is a dozen calls a layer; on a CPU half of its time is Python,
so weights are laid out beforehand, and views are made once. A sequence's values do not depend on the others of its batch, to
the last bit: every product is one of B products of one row (a batch's product of B rows would add up in another order).

B sequences, D width, C = 3 D, R = layers D, N tokens to come, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.model.filter import evaluate_filter
from hyena_ds.ops.layer_norm import NORM_EPSILON
from hyena_ds.ops.online_convolution import OnlineConvolution, OnlineFilter
from hyena_ds.ops.short_convolution import HALO
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.prefill import Prefix


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor


class _Linear(NamedTuple):
    weight: Tensor
    """(in, out), a transposed view: that is the quicker one for a single row."""
    bias: Tensor

    def for_batch(self, B: int) -> _Linear:
        """The same weight for each of B products, without copies."""
        return _Linear(self.weight.expand(B, -1, -1), self.bias)


class _Layer(NamedTuple):
    """A block's parameters as a step uses them."""

    operator_norm: _Norm
    into: _Linear
    last_tap_C: Tensor
    lag_zero_D: Tensor
    """The filter's, and the skip."""
    out: _Linear
    mlp_norm: _Norm
    up: _Linear
    down: _Linear

    def for_batch(self, B: int) -> _Layer:
        """The same with a matrix product for each sequence."""
        into, out, up, down = (linear.for_batch(B) for linear in (self.into, self.out, self.up, self.down))
        return self._replace(into=into, out=out, up=up, down=down)


class _OfLayers(NamedTuple):
    """A tensor of all layers, and a view for each."""

    x_sB1C: Tensor
    views: tuple[Tensor, ...]


class Decoder:
    """A model ready to decode up to `tokens` tokens after any prompt; holds its filters that far."""

    def __init__(self, predictor: Predictor, tokens: int):
        self.precision, backbone = predictor.precision, predictor.model.backbone
        self.embedding_VD = backbone.embedding.weight.detach()
        self.final_norm = _Norm(backbone.final_norm.weight.detach(), backbone.final_norm.bias.detach())
        self.width = self.embedding_VD.shape[1]
        layers, filters, taps, biases = [], [], [], []
        with torch.no_grad():
            for block in predictor.blocks:
                operator = type(block.operator_weights())(*(weight.detach() for weight in block.operator_weights()))
                mlp = type(block.mlp_weights())(*(weight.detach() for weight in block.mlp_weights()))
                implicit = block.operator.implicit_filter
                k_DN = evaluate_filter(implicit.shape, implicit.weights(), 0, tokens)
                filters.append(k_DN)
                taps.append(operator.short_weight[:, 0].t())
                biases.append(operator.short_bias)
                layers.append(
                    _Layer(
                        _Norm(operator.norm_weight, operator.norm_bias),
                        self._linear(operator.in_weight, operator.in_bias),
                        operator.short_weight[:, 0, HALO].contiguous(),
                        k_DN[:, 0] + operator.skip,
                        self._linear(operator.out_weight, operator.out_bias),
                        _Norm(mlp.norm_weight, mlp.norm_bias),
                        self._linear(mlp.up_weight, mlp.up_bias),
                        self._linear(mlp.down_weight, mlp.down_bias),
                    )
                )
            self.layers = tuple(layers)
            self.taps_3s11C = torch.stack(taps, 1)[:, :, None, None].contiguous()
            self.short_bias_s11C = torch.stack(biases)[:, None, None]
            self.filters = OnlineFilter(torch.cat(filters))

    def start(self, prefixes: Sequence[Prefix]) -> Decoding:
        """Sequences that go on from their prompts together."""
        return Decoding(self, prefixes)

    def _linear(self, weight: Tensor, bias: Tensor) -> _Linear:
        return _Linear(weight.to(self.precision).t(), bias)


class Decoding:
    """Sequences under way; `step` as often as the decoder was made for, less the last token, which nothing follows."""

    def __init__(self, decoder: Decoder, prefixes: Sequence[Prefix]):
        self.logits_BV = torch.stack([prefix.logits_V for prefix in prefixes])
        """Logits of each sequence's next token."""
        self._decoder, B, layers = decoder, len(prefixes), len(decoder.layers)
        self._online = OnlineConvolution(decoder.filters, [prefix.ahead_RN for prefix in prefixes])
        # Views of each position of a block, one a layer: (B, 1, D).
        self._now, self._inputs = (
            [x_BR.unflatten(-1, (layers, 1, decoder.width)).unbind(1) for x_BR in of_block]
            for of_block in (self._online.now, self._online.inputs)
        )
        projected_2sB1C = torch.stack([prefix.projected_2sC for prefix in prefixes], 2).unsqueeze(3).contiguous()
        self._before, self._last = (_OfLayers(x_sB1C, x_sB1C.unbind()) for x_sB1C in projected_2sB1C)
        carry_sB1C = torch.empty_like(self._last.x_sB1C)
        self._carry = _OfLayers(carry_sB1C, carry_sB1C.unbind())
        self._carry_over()
        self._layers = tuple(layer.for_batch(B) for layer in decoder.layers)
        self._head_BDV = decoder.embedding_VD.t().expand(B, -1, -1)

    @torch.inference_mode()
    def step(self, token_ids_B: Tensor) -> Tensor:
        """Take the next token of each sequence; the logits (B, V) of the one after it."""
        decoder, place = self._decoder, self._online.place
        shape = (decoder.width,)
        projected = self._before  # the older ones are needed no more
        r_B1D = F.embedding(token_ids_B.unsqueeze(1), decoder.embedding_VD)
        for weights, now, u, p, carry in zip(
            self._layers,
            self._now[place],
            self._inputs[place],
            projected.views,
            self._carry.views,
            strict=True,
        ):
            x = F.layer_norm(r_B1D, shape, *weights.operator_norm, NORM_EPSILON)
            p.copy_(_product(x, weights.into))
            x0, x1, v = torch.addcmul(carry, p, weights.last_tap_C).chunk(3, -1)
            torch.mul(x1, v, out=u)
            z = torch.addcmul(now, u, weights.lag_zero_D).mul_(x0)
            r_B1D = _product(z, weights.out).add_(r_B1D)
            x = F.layer_norm(r_B1D, shape, *weights.mlp_norm, NORM_EPSILON)
            h = F.gelu(_product(x, weights.up), approximate="tanh")
            r_B1D = _product(h, weights.down).add_(r_B1D)
        self._before, self._last = self._last, projected
        self._carry_over()
        self._online.advance()
        x = F.layer_norm(r_B1D, shape, *decoder.final_norm, NORM_EPSILON)
        self.logits_BV = torch.bmm(x, self._head_BDV).squeeze(1)
        return self.logits_BV

    def _carry_over(self) -> None:
        """Make `_carry` what the short filter of every layer takes from the last two tokens, and its bias."""
        first, second, _ = self._decoder.taps_3s11C
        carry_sB1C = self._carry.x_sB1C
        torch.addcmul(self._decoder.short_bias_s11C, self._last.x_sB1C, second, out=carry_sB1C)
        carry_sB1C.addcmul_(self._before.x_sB1C, first)


def _product(x_B1D: Tensor, linear: _Linear) -> Tensor:
    """x W + b in the precision of W, as float32."""
    if linear.weight.dtype == x_B1D.dtype:
        return torch.baddbmm(linear.bias, x_B1D, linear.weight)
    return torch.bmm(x_B1D.to(linear.weight.dtype), linear.weight).float().add_(linear.bias)
