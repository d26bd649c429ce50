"""Kernels, bytes and live memory of what runs on the meta device, where nothing is computed: what a GPU would be given.

    with Count() as count: forward, backward --> count.kernels, count.bytes, count.peak, count.host_copies

A kernel reads each operand once and writes its result; views and empty tensors are free. What PyTorch does inside one
operation on a CUDA device, and does not show, is added from its source: the copy that a complex-to-real transform makes of
its input, its scaling in a kernel of its own, the second kernel of the norm's backward. How often a transform goes
through memory is an assumption (FFT_PASSES). A kernel of ours is an operation of the namespace `hyena_ds`, and counts as
the bytes that it declares.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FFT_PASSES = 3
"""Times that a transform of a million points or more reads and writes its signal: assumed, until a card has said it."""

_FREE = ("_unsafe_view", "detach", "alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "set_")
_FREE += ("new_empty_strided", "resize_", "is_pinned", "_reshape_alias")
_OVERWRITES = ("copy_", "fill_", "zero_", "new_full", "new_zeros", "new_ones", "full_like", "zeros_like", "ones_like")
"""Their first operand is not read."""
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor, torch.asarray)

Declared = Mapping[str, Callable[..., int]]
"""By the name of a kernel's operation: bytes that it moves for the arguments of a call."""


class Count(TorchDispatchMode):
    """What has run since it was entered. `kernels` and `bytes` by (file and line of the package, operation)."""

    def __init__(self, declared: Declared | None = None) -> None:
        super().__init__()
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.host_copies: Counter[str] = Counter()
        """Constructors with data and copies between host and device, by file and line: each holds the host up."""
        self.live = self.peak = 0
        """Bytes of tensors made since, now and at most."""
        self._declared = declared or {}
        self._alive: dict[int, int] = {}
        self._constructors = ExitStack()

    def __enter__(self) -> Count:
        self._constructors.enter_context(_Constructors(self.host_copies))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._constructors.close()

    def hold(self, tensors: Iterator[Tensor]) -> None:
        """Count tensors that were made before among the live ones."""
        for tensor in tensors:
            self._lives(tensor)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        name, place = operation._schema.name.split("::")[1], _place()
        read = {id(t): t for t in tree_leaves((args, {k: v for k, v in kwargs.items() if k != "out"})) if _is(t)}
        written = [t for t in tree_leaves((result, kwargs.get("out"))) if _is(t)]
        devices = {t.device.type for t in (*read.values(), *written) if t.dim() or t.device.type != "cpu"}
        if devices == {"cpu", "meta"} and not kwargs.get("non_blocking"):
            self.host_copies[place] += 1
        if "meta" not in devices or operation.namespace == "c10d":
            return result
        if operation.is_view:
            return result
        for tensor in written:
            self._lives(tensor)
        if name in _FREE or not written:
            return result
        if name in _OVERWRITES:
            read.pop(id(args[0]), None)
        moved = sum(map(_bytes, read.values())) + sum(map(_bytes, {id(t): t for t in written}.values()))
        kernels, more, scratch = _inside(name, args, result)
        if operation.namespace == "hyena_ds":
            moved = self._declared[name](*args, **kwargs)
        self.kernels[place, name] += kernels
        self.bytes[place, name] += moved + more
        self.peak = max(self.peak, self.live + scratch)
        return result

    def _lives(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or tensor.device.type != "meta":
            return
        self._alive[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._dies, key).atexit = False

    def _dies(self, key: int) -> None:
        self.live -= self._alive.pop(key)


class _Constructors(TorchFunctionMode):
    """Counts tensors that are made of the host's values on the device: no operation of the dispatcher shows them."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        of_a_tensor = function is not Tensor.new_tensor and isinstance(args[0], Tensor)
        if function in _FROM_DATA and result.device.type == "meta" and not of_a_tensor:
            self._found[_place()] += 1
        return result


def _inside(name: str, args: Any, result: Any) -> tuple[int, int, int]:
    """(kernels, bytes, scratch memory) of an operation on a CUDA device, the last two beyond its operands and result."""
    if name in ("_fft_r2c", "_fft_c2r", "_fft_c2c"):
        signal = max(_bytes(args[0]), _bytes(result))
        kernels, more = FFT_PASSES, 2 * FFT_PASSES * signal - _bytes(args[0]) - _bytes(result)
        if args[2]:  # a scale
            kernels, more = kernels + 1, more + 2 * _bytes(result)
        if name == "_fft_c2r":
            return kernels + 1, more + 2 * _bytes(args[0]), 2 * signal
        return kernels, more, signal
    if name == "native_layer_norm_backward":
        return 2, _bytes(args[0]) + _bytes(args[1]), 0
    if name in ("addmm", "baddbmm") and args[0].dim() > 1 and args[0] is not result:
        # The summand is copied to the result first; a vector that lies along the rows is the product's own business.
        return 2, 2 * _bytes(result), 0
    return 1, 0, 0


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements that are there: an expanded dim counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()


def _place() -> str:
    """File and line of the package that called the operation."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/hyena_ds/" in file and file != __file__:
            return f"{file.rpartition('/hyena_ds/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"
