"""Memory of large tensors on a CPU, used again and again: what torch's caching allocator does on a GPU.

    empty(shape) --free block of that size, or a new one--> tensor --last reference gone--> the block is free again

A step needs the same few large tensors every time. The C library either gives them back to the kernel, and the next one
pays for its pages again (a sixth of a step of a million tokens), or keeps holes that nothing else fits in. Blocks kept by
size do neither. On a GPU, and for small tensors, it is torch's own `empty`.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hyena_ds.ops.sizes import LARGE

_PAGE = 1 << 21
_ALIGNED = 64

_free: defaultdict[int, list[np.ndarray]] = defaultdict(list)
"""By size. Of the process, as the C library's own free lists are."""
_reused = True


def empty(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous tensor without values."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE or not _reused:
        return torch.empty(*shape, device=device, dtype=dtype)
    room = -(-size // _PAGE) * _PAGE
    free = _free[room]
    block = free.pop() if free else _new_block(room)
    lent = block[:size]  # an array of its own, which torch holds until the tensor's storage goes
    weakref.finalize(lent, free.append, block).atexit = False
    return torch.from_numpy(lent).view(dtype).view(*shape)


def empty_like(x: Tensor) -> Tensor:
    """Contiguous, of the shape, type and device of `x`."""
    return empty(x.shape, x.device, x.dtype)


def give_back() -> None:
    """Return free blocks to the system, a device's too: when tensors of other sizes are about to come."""
    for blocks in _free.values():
        blocks.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def plain() -> Iterator[None]:
    """Every tensor from torch itself, whose records of memory then hold all of them: to measure."""
    global _reused
    give_back()
    _reused = False
    try:
        yield
    finally:
        _reused = True


def _new_block(room: int) -> np.ndarray:
    try:
        memory = np.empty(room + _ALIGNED, dtype=np.uint8)  # numpy asks for huge pages itself
    except MemoryError:
        give_back()
        memory = np.empty(room + _ALIGNED, dtype=np.uint8)
    first = -memory.ctypes.data % _ALIGNED
    return memory[first : first + room]
