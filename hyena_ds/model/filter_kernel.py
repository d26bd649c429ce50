"""The implicit filter by Triton kernels: the parameters of filter.py as ops/triton/filter.py takes them; imports triton."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.model.filter import FilterShape, FilterWeights, decay_rates, evaluate_filter, filter_gradients
from hyena_ds.ops.triton import filter as kernels
from hyena_ds.ops.triton.cases import Case, Sizes, Tensors

_FEATURES, _WIDTH, _OFFSET, _SHIFT = 5, 64, 777, 0.05
"""Of the cases."""


def filter_tensors(shape: FilterShape, weights: FilterWeights) -> kernels.FilterTensors:
    """What the kernels need to know of a filter."""
    device = weights.frequency.device
    bands = (shape.features - 1) // 2
    f_b = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=torch.float64) / shape.time_context
    time = f_b.new_full((1,), 1.0 / (shape.time_context - 1))
    none_b = torch.zeros_like(f_b)
    decay_D = decay_rates(shape.width, device) / (shape.time_context - 1)
    *layers, frequency = weights
    return kernels.FilterTensors(
        *layers, frequency.view(-1), torch.cat((time, f_b, f_b)), torch.cat((none_b[:1], none_b, none_b + 0.25)),
        decay_D, shape.shift,
    )  # fmt: skip


def _shape(k_Dl: Tensor) -> FilterShape:
    context = k_Dl.shape[1] + _OFFSET
    return FilterShape(k_Dl.shape[0], context, context, _FEATURES, _SHIFT)


def _make(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(the parameters, dk)."""
    D, F, E = sizes.width, _WIDTH, _FEATURES
    return (
        random(F, E), random(F), random(F, F) / 8.0, random(F), random(F, F) / 8.0, random(F), random(D, F) / 8.0,
        random(1, F) / 8.0 + 1.0, random(D, sizes.tokens),
    )  # fmt: skip


def _values(*tensors: Tensor) -> Tensors:
    *weights, dk_Dl = tensors
    return (evaluate_filter(_shape(dk_Dl), FilterWeights(*weights), _OFFSET, dk_Dl.shape[1]),)


def _kernel_values(*tensors: Tensor) -> Tensors:
    *weights, dk_Dl = tensors
    made = filter_tensors(_shape(dk_Dl), FilterWeights(*weights))
    return (kernels.filter_values(made, _OFFSET, torch.empty_like(dk_Dl)),)


def _gradients(*tensors: Tensor) -> Tensors:
    *weights, dk_Dl = tensors
    return filter_gradients(_shape(dk_Dl), FilterWeights(*weights), _OFFSET, dk_Dl)


def _kernel_gradients(*tensors: Tensor) -> Tensors:
    *weights, dk_Dl = tensors
    found = kernels.filter_gradients(filter_tensors(_shape(dk_Dl), FilterWeights(*weights)), _OFFSET, dk_Dl)
    return *found[:-1], found.frequency_F.view(1, -1)


def _reference(*tensors: Tensor) -> Tensor:
    """k (D, l) of float64 parameters, written without the portable code."""
    w1, b1, w2, b2, w3, b3, w4, frequency, dk_Dl = tensors
    (D, l), bands = dk_Dl.shape, (_FEATURES - 1) // 2
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


FILTER_CASES = (
    Case(
        "filter",
        ("k",),
        _make,
        _kernel_values,
        _values,
        lambda *tensors: kernels.filter_traffic(tensors[-1], False),
        lambda *tensors: (_reference(*tensors),),
    ),
    Case(
        "filter backward",
        FilterWeights._fields,
        _make,
        _kernel_gradients,
        _gradients,
        lambda *tensors: kernels.filter_traffic(tensors[-1], True),
        _reference_gradients,
    ),
)
"""The filter's kernels; they are float32 whatever the compute dtype is."""
