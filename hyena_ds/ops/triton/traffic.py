"""What a kernel reads from memory and writes to it, as its launcher declares it; imports no triton.

Every element that a kernel touches counts once, however often its programs read it: neighbours share it in a cache. Tests
hold the numbers against the loads and stores of the interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Traffic(NamedTuple):
    """Bytes of one launch."""

    read: int
    written: int

    @property
    def total(self) -> int:
        """Both ways."""
        return self.read + self.written


def traffic(read: tuple[Tensor | None, ...], written: tuple[Tensor | None, ...]) -> Traffic:
    """Of a launch that touches all of each tensor; None is a tensor that this launch does without."""
    return Traffic(*(sum(x.numel() * x.element_size() for x in side if x is not None) for side in (read, written)))
