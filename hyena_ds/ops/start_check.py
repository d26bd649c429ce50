"""What back ends that are checked at the start of a run have in common: the long convolution's and the Triton kernels'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Unusable(Exception):
    """What was found in place of a back end that can be trusted, and what to do."""

    def __init__(self, found: str, cure: str):
        super().__init__(found)
        self.cure = cure


def is_cuda(device: torch.device) -> bool:
    """Whether tensors on `device` are CUDA's."""
    return torch.empty(0, device=device).is_cuda


def difference(found: Tensor | None, wanted: Tensor | None) -> float:
    """The largest, relative to the largest value; NaN where one is. Raises ValueError where shape or type is another."""
    assert found is not None and wanted is not None
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError(f"{found.dtype} {tuple(found.shape)} where {wanted.dtype} {tuple(wanted.shape)} was due")
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def first_line(error: Exception) -> str:
    """The error's type and the first line of its text, for a sentence."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")


_TIMED = 5


def device_seconds(work: Callable[[], object]) -> float:
    """How long a CUDA device takes for some work, by its own events, of one run of several after one that is not counted."""
    work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()  # type: ignore[no-untyped-call, unused-ignore]
    for _ in range(_TIMED):
        work()
    end.record()  # type: ignore[no-untyped-call, unused-ignore]
    end.synchronize()  # type: ignore[no-untyped-call, unused-ignore]
    return float(begin.elapsed_time(end)) / 1000.0 / _TIMED  # type: ignore[no-untyped-call, unused-ignore]
