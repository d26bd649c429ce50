"""The implicit filter by Triton kernels: the parameters of filter.py as ops/triton/filter.py takes them; imports triton."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.model import filter as portable
from hyena_ds.model.filter import FilterShape, FilterWeights, check_positions, decay_rates
from hyena_ds.ops.large import empty
from hyena_ds.ops.triton import filter as kernels
from hyena_ds.ops.triton.case import Case, Sizes, Tensors

_OFFSET, _SHIFT = 777, 0.05
"""The first position and the shift of the cases' filters."""


def filter_tensors(shape: FilterShape, weights: FilterWeights) -> kernels.FilterTensors:
    """What the kernels need to know of a filter."""
    device = weights.frequency.device
    bands = (shape.features - 1) // 2
    f_b = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=torch.float64) / shape.time_context
    time = f_b.new_full((1,), 1.0 / (shape.time_context - 1))
    none_b = torch.zeros_like(f_b)
    decay_D = decay_rates(shape.width, device) / (shape.time_context - 1)
    turns_E, phase_E = torch.cat((time, f_b, f_b)), torch.cat((none_b[:1], none_b, none_b + 0.25))
    *layers, frequency = weights
    return kernels.FilterTensors._make((*layers, frequency.view(-1), turns_E, phase_E, decay_D, shape.shift))


def evaluate_filter(
    shape: FilterShape, weights: FilterWeights, offset: int, length: int, columns: int = 1, pieces: int = 1
) -> Tensor:
    """As `model.filter.evaluate_filter`; a kernel needs no pieces."""
    check_positions(shape, offset + length)
    k_Dl = empty((shape.width, length + -length % columns), weights.frequency.device)
    return kernels.filter_values(filter_tensors(shape, weights), offset, k_Dl)[:, :length]


def filter_gradients(
    shape: FilterShape, weights: FilterWeights, offset: int, dk_Dl: Tensor, pieces: int = 1
) -> FilterWeights:
    """As `model.filter.filter_gradients`; a kernel needs no pieces."""
    found = kernels.filter_gradients(filter_tensors(shape, weights), offset, dk_Dl.contiguous())
    return FilterWeights(*found[:-1], found.frequency_F.view(1, -1))


def _shape(tensors: Tensors) -> FilterShape:
    input_weight_FE, dk_Dl = tensors[0], tensors[-1]
    context = dk_Dl.shape[1] + _OFFSET
    return FilterShape(dk_Dl.shape[0], context, context, input_weight_FE.shape[1], _SHIFT)


def _maker(E: int, F: int) -> Callable[[Sizes, Callable[..., Tensor]], Tensors]:
    """make(sizes, random) -> (the parameters, dk)."""

    def make(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
        D = sizes.width
        return (
            random(F, E), random(F), random(F, F) / 8.0, random(F), random(F, F) / 8.0, random(F), random(D, F) / 8.0,
            random(1, F) / 8.0 + 1.0, random(D, sizes.tokens),
        )  # fmt: skip

    return make


def _values(evaluate: Callable[..., Tensor]) -> Callable[..., Tensors]:
    return lambda *tensors: (evaluate(_shape(tensors), FilterWeights(*tensors[:-1]), _OFFSET, tensors[-1].shape[1]),)


def _gradients(differentiate: Callable[..., FilterWeights]) -> Callable[..., Tensors]:
    return lambda *tensors: differentiate(_shape(tensors), FilterWeights(*tensors[:-1]), _OFFSET, tensors[-1])


def _reference(*tensors: Tensor) -> Tensor:
    """k (D, l) of float64 parameters, written without the portable code."""
    w1, b1, w2, b2, w3, b3, w4, frequency, dk_Dl = tensors
    (D, l), bands = dk_Dl.shape, (w1.shape[1] - 1) // 2
    context = l + _OFFSET
    n = torch.arange(_OFFSET, context, device=dk_Dl.device, dtype=torch.float64)
    angles_bl = (
        torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64).to(n).unsqueeze(1) * n * (2.0 * math.pi / context)
    )
    t_1l = n.unsqueeze(0) / (context - 1)
    h = torch.cat((t_1l, angles_bl.cos(), -angles_bl.sin()))
    for weight, bias in ((w1, b1), (w2, b2), (w3, b3)):
        h = torch.sin(frequency.view(-1, 1) * (weight @ h + bias.unsqueeze(1)))
    return (w4 @ h) * (torch.exp(-t_1l * decay_rates(D, dk_Dl.device).unsqueeze(1)) + _SHIFT)


def _reference_gradients(*tensors: Tensor) -> Tensors:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in tensors[:-1]]
        return torch.autograd.grad(_reference(*leaves, tensors[-1]), leaves, tensors[-1])


def filter_cases(features: int, filter_width: int) -> tuple[Case, ...]:
    """The filter's kernels; they are float32 whatever the compute dtype is."""
    make = _maker(features, filter_width)
    return (
        Case(
            "filter",
            ("k",),
            make,
            _values(evaluate_filter),
            _values(portable.evaluate_filter),
            lambda *tensors: kernels.values_traffic(tensors[-1]),
            lambda *tensors: (_reference(*tensors),),
        ),
        Case(
            "filter backward",
            FilterWeights._fields,
            make,
            _gradients(filter_gradients),
            _gradients(portable.filter_gradients),
            lambda *tensors: kernels.gradients_traffic(tensors[-1]),
            _reference_gradients,
        ),
    )


FILTER_CASES = filter_cases(5, 64)
