"""What a kernel is checked, tested, timed and counted by: portable code beside it, on the same random tensors.

sizes --make--> tensors --kernel--> results          --portable--> the same;  of tensors in float64, the exact ones
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyena_ds.ops.triton.traffic import Traffic

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """What a case is made for."""

    batch: int
    tokens: int
    width: int
    inner: int
    compute_dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Case:
    """One kernel, its portable twin, and what it declares to move."""

    name: str
    results: tuple[str, ...]
    make: Callable[[Sizes, Callable[..., Tensor]], Tensors]
    """(sizes, random(*shape, dtype=torch.float32)) -> the tensors that both take."""
    kernel: Callable[..., Tensors]
    portable: Callable[..., Tensors]
    """Computes in the widest type of what it is given: float32, or float64."""
    traffic: Callable[..., Traffic]
    """Bytes, declared for the same tensors."""
    reference: Callable[..., Tensors] | None = None
    """Another function of float64 tensors, where the portable code is float32 in part."""


def exact(case: Case, tensors: Tensors) -> Tensors:
    """What the results should be, from the same values in float64."""
    function = case.reference or case.portable
    return function(*(x.double() if x.is_floating_point() else x for x in tensors))


def random_tensors(case: Case, sizes: Sizes, seed: int) -> Tensors:
    """Tensors for a case: a function of case, sizes and seed, made on the device."""
    generator = torch.Generator(sizes.device).manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=sizes.device, dtype=torch.float32).to(dtype)

    return case.make(sizes, random)
