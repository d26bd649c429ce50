"""What kernels load and store in the interpreter: every element that a mask lets through, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder


class Count:
    """Addresses of the loads and stores that fall into the tensors of interest."""

    def __init__(self) -> None:
        self.loads: list[np.ndarray] = []
        self.stores: list[np.ndarray] = []

    def touched(self, addresses: list[np.ndarray], x: Tensor) -> int:
        """Bytes of `x` that are among the addresses; each element once."""
        found = np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.int64)
        begin, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
        return int(((found >= begin) & (found < begin + size)).sum()) * x.element_size()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Count what kernels do within the block; masked accesses are the only ones that tensors of interest get."""
    count = Count()

    def watching(do: Callable[..., Any], addresses: list[np.ndarray], mask_at: int) -> Callable[..., Any]:
        def watched(pointers: Any, *rest: Any, **named: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape)
            addresses.append(pointers.data[mask].astype(np.int64).ravel())
            return do(pointers, *rest, **named)

        return watched

    with monkeypatch.context() as patch:
        for name, addresses, mask_at in (
            ("create_masked_load", count.loads, 0),
            ("create_masked_store", count.stores, 1),
        ):
            patch.setattr(interpreter_builder, name, watching(getattr(interpreter_builder, name), addresses, mask_at))
        yield count
