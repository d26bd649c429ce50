"""The implicit filter by the functions of ops/native; the same two as in filter.py, for a CPU.

A sine and its slope are made in one pass, with the sums that they are of; of positions and window only products are left.

l local length, c tokens of a chunk, D width, E positional features, F width of the filter's MLP.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyena_ds.model.filter import FilterShape, FilterWeights, check_positions, decay_rates, positional_features
from hyena_ds.ops.large import empty
from hyena_ds.ops.native import functions as native
from hyena_ds.ops.products import without_autocast
from hyena_ds.ops.sizes import tokens_of_a_chunk


def evaluate_filter(
    shape: FilterShape, weights: FilterWeights, offset: int, length: int, columns: int = 1, pieces: int = 1
) -> Tensor:
    """As `model.filter.evaluate_filter`; a CPU needs no pieces."""
    check_positions(shape, offset + length)
    native.check_floats(*weights)
    padded = length + -length % columns
    k_Dl = empty((shape.width, padded), weights.frequency.device)
    frequency_F = weights.frequency.view(-1)
    with without_autocast(k_Dl.device):
        chunks = _Chunks(shape, weights, offset, padded)
        for start, z_Ec, window in chunks:
            h_Fc = z_Ec
            for weight, bias in _sine_layers(weights):
                h_Fc = torch.mm(weight, h_Fc)
                native.sine(h_Fc, bias, frequency_F, h_Fc, None)
            into_Dc = k_Dl[:, start : start + z_Ec.shape[1]]
            native.window(torch.mm(weights.output_weight, h_Fc), *window, into_Dc)
    return k_Dl[:, :length]


def filter_gradients(
    shape: FilterShape, weights: FilterWeights, offset: int, dk_Dl: Tensor, pieces: int = 1
) -> FilterWeights:
    """As `model.filter.filter_gradients`; a CPU needs no pieces."""
    native.check_floats(*weights)
    gradients = FilterWeights(*(torch.zeros_like(weight) for weight in weights))
    frequency_F, dfrequency_F = weights.frequency.view(-1), gradients.frequency.view(-1)
    layers, of_layers = _sine_layers(weights), _sine_layers(gradients)
    with without_autocast(dk_Dl.device):
        for start, z_Ec, window in _Chunks(shape, weights, offset, dk_Dl.shape[1]):
            inputs, sums, slopes = [z_Ec], [], []
            for weight, bias in layers:
                sums.append(torch.mm(weight, inputs[-1]))
                inputs.append(torch.empty_like(sums[-1]))
                slopes.append(torch.empty_like(sums[-1]))
                native.sine(sums[-1], bias, frequency_F, inputs[-1], slopes[-1])
            c = z_Ec.shape[1]
            dh_Dc = dk_Dl.new_empty((shape.width, c))
            native.window(dk_Dl[:, start : start + c], *window, dh_Dc)
            gradients.output_weight.addmm_(dh_Dc, inputs[-1].t())
            dh_Fc = torch.mm(weights.output_weight.t(), dh_Dc)
            for layer in (2, 1, 0):
                dweight, dbias = of_layers[layer]
                native.sine_backward(dh_Fc, sums[layer], slopes[layer], frequency_F, dfrequency_F, dbias)
                dweight.addmm_(dh_Fc, inputs[layer].t())
                if layer:
                    dh_Fc = torch.mm(layers[layer][0].t(), dh_Fc)
    return gradients


class _Chunks:
    """(first token, features, (the window's shape within a chunk, its scale in this one, shift)) of some tokens at a time."""

    def __init__(self, shape: FilterShape, weights: FilterWeights, offset: int, length: int):
        self._shape, self._offset, self._length = shape, offset, length
        self._size = min(length, tokens_of_a_chunk(max(shape.width, weights.input_bias.numel()), True))
        self._device = weights.frequency.device
        self._decay_D = decay_rates(shape.width, self._device) / (shape.time_context - 1)
        within_c = torch.arange(self._size, device=self._device, dtype=torch.float64)
        self._within_Dc = torch.exp(-self._decay_D.unsqueeze(1) * within_c).float()

    def __iter__(self) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor, float]]]:
        for start in range(0, self._length, self._size):
            c, first = min(self._size, self._length - start), self._offset + start
            before_D = torch.exp(-self._decay_D * first).float()
            z_Ec = positional_features(self._shape, first, c, self._device)
            yield start, z_Ec, (self._within_Dc[:, :c], before_D, self._shape.shift)


def _sine_layers(weights: FilterWeights) -> tuple[tuple[Tensor, Tensor], ...]:
    return (
        (weights.input_weight, weights.input_bias),
        (weights.hidden1_weight, weights.hidden1_bias),
        (weights.hidden2_weight, weights.hidden2_bias),
    )
