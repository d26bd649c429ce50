"""What kernels load and store in the interpreter: every element that a mask lets through, once a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, interpreter_builder


class Count:
    """Addresses of loads and of stores, by launch."""

    def __init__(self) -> None:
        self.loads: list[list[np.ndarray]] = []
        self.stores: list[list[np.ndarray]] = []

    def begin(self) -> None:
        """A launch begins."""
        self.loads.append([])
        self.stores.append([])

    def words_read(self) -> int:
        """Elements that were loaded, of whatever tensor."""
        return sum(np.unique(np.concatenate(launch)).size for launch in self.loads if launch)

    def words_written(self) -> int:
        """Elements that were stored."""
        return sum(np.unique(np.concatenate(launch)).size for launch in self.stores if launch)

    def read(self, x: Tensor) -> int:
        """Bytes of `x` that were loaded."""
        return sum(_touched(launch, x) for launch in self.loads)

    def written(self, x: Tensor) -> int:
        """Bytes of `x` that were stored."""
        return sum(_touched(launch, x) for launch in self.stores)


def _touched(addresses: list[np.ndarray], x: Tensor) -> int:
    found = np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.int64)
    begin, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
    return int(((found >= begin) & (found < begin + size)).sum()) * x.element_size()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Count what kernels do within the block; masked accesses are the only ones that large tensors get."""
    count = Count()

    def watching(do: Callable[..., Any], launches: list[list[np.ndarray]], mask_at: int) -> Callable[..., Any]:
        def watched(pointers: Any, *rest: Any, **named: Any) -> Any:
            mask = np.broadcast_to(rest[mask_at].data, pointers.data.shape)
            launches[-1].append(pointers.data[mask].astype(np.int64).ravel())
            return do(pointers, *rest, **named)

        return watched

    launch = GridExecutor.__call__

    def launched(self: Any, *arguments: Any, **named: Any) -> Any:
        count.begin()
        return launch(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", launched)
        load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
        patch.setattr(interpreter_builder, "create_masked_load", watching(load, count.loads, 0))
        patch.setattr(interpreter_builder, "create_masked_store", watching(store, count.stores, 1))
        yield count
