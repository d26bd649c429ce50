"""What a kernel reads from memory and writes to it, as its launcher declares it; imports no triton.

Every element that a kernel touches counts once, however often its programs read it: neighbours share it in a cache. Tests
hold the numbers against the loads and stores of the interpreter. On the meta device a launch is an operation that does
nothing, `hyena_ds::kernel`, for those who count (bench/count.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_library = torch.library.Library("hyena_ds", "FRAGMENT")
_library.define("kernel(Tensor like, str name, int bytes) -> ()")
_library.impl("kernel", lambda like, name, bytes: None, "Meta")


class Traffic(NamedTuple):
    """Bytes of one launch."""

    read: int
    written: int

    @property
    def total(self) -> int:
        """Both ways."""
        return self.read + self.written


def traffic(read: tuple[Tensor | None, ...], written: tuple[Tensor | None, ...]) -> Traffic:
    """Bytes of a launch that touches all of each tensor; None is a tensor that this launch does without."""
    return Traffic(*(sum(x.numel() * x.element_size() for x in side if x is not None) for side in (read, written)))


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    like: Tensor,
    declared: Callable[[], Traffic],
    *arguments: object,
    **options: int,
) -> None:
    """Start `kernel` on the device of `like`; on the meta device only say what it would move."""
    if like.device.type == "meta":
        torch.ops.hyena_ds.kernel(like, kernel.fn.__name__, declared().total)
    else:
        kernel[grid](*arguments, **options)
