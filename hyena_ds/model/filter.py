"""The implicit filter: a small sine MLP over positions, times an exponential window.

    t, w --> z = [t, cos(f w), -sin(f w)] --Linear, sin(freq x)--> ... --Linear--> h --x (exp(-t |delta|) + shift)--> k

A filter is a function of the model, never of the input's length: shorter inputs use its prefix. Time runs from 0 to 1 over
`time_context` tokens: all of `maximum_context`, but for a filter that was extrapolated. A rank evaluates it on its own
tokens. Everything here is float32 under any precision: a bf16 time axis has 1,781 distinct values of a million. Tokens go
through in chunks, positions made on the fly, and backward evaluates again, so nothing of the MLP is ever kept. Source:
Hyena (arXiv 2302.10866) section 3.3, and the published HyenaFilter.

l local length, c tokens of a chunk, D width, E positional features, F width of the filter's MLP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyena_ds.ops.large import empty
from hyena_ds.ops.products import without_autocast
from hyena_ds.ops.sizes import tokens_of_a_chunk

_FAST_DECAY, _SLOW_DECAY, _DECAY_TARGET = 0.3, 1.5, 1e-2


class FilterWeights(NamedTuple):
    """Parameters of one filter."""

    input_weight: Tensor
    input_bias: Tensor
    hidden1_weight: Tensor
    hidden1_bias: Tensor
    hidden2_weight: Tensor
    hidden2_bias: Tensor
    output_weight: Tensor
    frequency: Tensor


@dataclass(frozen=True)
class FilterShape:
    """What a filter is besides its parameters."""

    width: int
    maximum_context: int
    """Positions over which it is defined."""
    time_context: int
    """Position n has the time n / (time_context - 1), and the angles of n / time_context turns: as published."""
    features: int
    shift: float


class ImplicitFilter(nn.Module):
    """Parameters of a filter; `evaluate_filter` and `filter_gradients` compute with its `weights()`."""

    def __init__(self, shape: FilterShape, filter_width: int, frequency: float):
        super().__init__()
        self.shape = shape
        self.input = nn.Linear(shape.features, filter_width)
        self.hidden1 = nn.Linear(filter_width, filter_width)
        self.hidden2 = nn.Linear(filter_width, filter_width)
        self.output = nn.Linear(filter_width, shape.width, bias=False)
        self.frequency = nn.Parameter(torch.full((1, filter_width), frequency))

    def weights(self) -> FilterWeights:
        """The parameters that the filter is evaluated from."""
        layers = (self.input, self.hidden1, self.hidden2)
        pairs = ((layer.weight, layer.bias) for layer in layers)
        return FilterWeights(*chain(*pairs, (self.output.weight, self.frequency)))


def evaluate_filter(shape: FilterShape, weights: FilterWeights, offset: int, length: int, columns: int = 1) -> Tensor:
    """k (D, length), float32, without a graph; computed for a multiple of `columns` positions. Raises ValueError beyond the
    maximum context."""
    if offset + length > shape.maximum_context:
        raise ValueError(
            f"positions up to {offset + length} were asked of a filter defined over {shape.maximum_context}; "
            "a longer context needs a model with a larger maximum_context"
        )
    padded = length + -length % columns
    k_Dl = empty((shape.width, padded), weights.frequency.device)
    with without_autocast(k_Dl.device):
        for chunk in _chunks(shape, weights, offset, padded):
            h_Fc = chunk.z_Ec
            for weight, bias in _sine_layers(weights):
                h_Fc = torch.addmm(bias.unsqueeze(1), weight, h_Fc).mul_(weights.frequency.view(-1, 1)).sin_()
            torch.mul(torch.mm(weights.output_weight, h_Fc), chunk.window_Dc, out=k_Dl[:, chunk.here])
    return k_Dl[:, :length]


def filter_gradients(shape: FilterShape, weights: FilterWeights, offset: int, dk_Dl: Tensor) -> FilterWeights:
    """Gradients of the parameters for the gradient `dk_Dl` of the filter at positions offset .. offset + l."""
    gradients = FilterWeights(*(torch.zeros_like(weight) for weight in weights))
    frequency_F1 = weights.frequency.view(-1, 1)
    dfrequency_F = gradients.frequency.view(-1)
    sine_gradients = list(_sine_layers(gradients))
    with without_autocast(dk_Dl.device):
        for chunk in _chunks(shape, weights, offset, dk_Dl.shape[1]):
            inputs, sums = [chunk.z_Ec], []
            for weight, bias in _sine_layers(weights):
                sums.append(torch.addmm(bias.unsqueeze(1), weight, inputs[-1]))
                inputs.append(torch.mul(sums[-1], frequency_F1).sin_())
            dh_Dc = dk_Dl[:, chunk.here] * chunk.window_Dc
            gradients.output_weight.addmm_(dh_Dc, inputs[-1].t())
            dh_Fc = torch.mm(weights.output_weight.t(), dh_Dc)
            for layer in (2, 1, 0):
                # sin(f a), a = W h + b: with s = dh cos(f a), df = sum of s a and da = f s
                s_Fc = dh_Fc.mul_(torch.mul(sums[layer], frequency_F1).cos_())
                dfrequency_F += torch.mul(s_Fc, sums[layer]).sum(1)
                da_Fc = s_Fc.mul_(frequency_F1)
                dweight, dbias = sine_gradients[layer]
                dweight.addmm_(da_Fc, inputs[layer].t())
                dbias += da_Fc.sum(1)
                if layer:
                    dh_Fc = torch.mm(list(_sine_layers(weights))[layer][0].t(), da_Fc)
    return gradients


def positional_features(shape: FilterShape, first: int, length: int, device: torch.device) -> Tensor:
    """z (E, length): time, then cosines and minus sines of the bands, made in float64 and rounded once to float32."""
    n_l = torch.arange(first, first + length, device=device, dtype=torch.float64)
    bands = (shape.features - 1) // 2
    f_b1 = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=torch.float64).unsqueeze(1)
    angles_bl = f_b1 * (n_l * (2.0 * math.pi / shape.time_context))
    t_1l = (n_l / (shape.time_context - 1)).unsqueeze(0)
    return torch.cat((t_1l, angles_bl.cos(), angles_bl.sin_().neg_())).float()


def decay_rates(width: int, device: torch.device) -> Tensor:
    """|delta| (D,), float64: from slow to fast decay over the channels."""
    slow, fast = math.log(_DECAY_TARGET) / _SLOW_DECAY, math.log(_DECAY_TARGET) / _FAST_DECAY
    return torch.linspace(slow, fast, width, device=device, dtype=torch.float64).abs()


@dataclass(frozen=True)
class _Chunk:
    here: slice
    """The part of the chunk that holds the tokens which were asked for."""
    z_Ec: Tensor
    window_Dc: Tensor


def _chunks(shape: FilterShape, weights: FilterWeights, offset: int, length: int) -> Iterator[_Chunk]:
    """Features and window of a few thousand tokens at a time.

    exp(-(t0 + t) delta) = exp(-t0 delta) exp(-t delta): the second factor is the same in every chunk.
    """
    device = weights.frequency.device
    size = min(length, tokens_of_a_chunk(max(shape.width, weights.input_bias.numel()), device.type == "cpu"))
    decay_D1 = decay_rates(shape.width, device).unsqueeze(1) / (shape.time_context - 1)
    within_Dc = torch.exp(-decay_D1 * torch.arange(size, device=device, dtype=torch.float64)).float()
    for start in range(0, length, size):
        c = min(size, length - start)
        before_D1 = torch.exp(-decay_D1 * (offset + start)).float()
        window_Dc = torch.mul(within_Dc[:, :c], before_D1)
        if shape.shift:
            window_Dc += shape.shift
        yield _Chunk(slice(start, start + c), positional_features(shape, offset + start, c, device), window_Dc)


def _sine_layers(weights: FilterWeights) -> tuple[tuple[Tensor, Tensor], ...]:
    return (
        (weights.input_weight, weights.input_bias),
        (weights.hidden1_weight, weights.hidden1_bias),
        (weights.hidden2_weight, weights.hidden2_bias),
    )
