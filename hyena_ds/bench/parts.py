"""Where the seconds of a step go: every call of torch, by the file that makes it.

    torch.mm, Tensor.mul_, ... --PartsMode--> part by (calling module, product or not): seconds of the clock and of the CPU

What calls do not account for is Python, autograd and the optimizer. CPU seconds of other threads than the step's are those
of the exchange. Synchronous work only, so not on an accelerator.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

import hyena_ds.model.block as block_module
from hyena_ds.cost.work import PRODUCTS, TRANSFORMS, WAITING

FILTER = "implicit filter"
PACKING = "packing for exchanges"
THREADS = "threads of exchanges"
REST = "Python, autograd, optimizer"
_PARTS = {
    "hyena_ds.model.operator": "gates, residual",
    "hyena_ds.model.mlp": "MLP besides its products",
    "hyena_ds.model.filter": FILTER,
    "hyena_ds.model.filter_cache": FILTER,
    "hyena_ds.ops.fft_convolution": TRANSFORMS,
    "hyena_ds.ops.gelu": "GELU",
    "hyena_ds.ops.short_convolution": "short filter",
    "hyena_ds.ops.layer_norm": "norms",
    "hyena_ds.ops.products": "products' sums and casts",
    "hyena_ds.ops.cross_entropy": "head and loss",
    "hyena_ds.parallel.layout": PACKING,
    "hyena_ds.parallel.collectives": PACKING,
}
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm"}
_MULTIPLYING = {"hyena_ds.model.operator", "hyena_ds.model.mlp", "hyena_ds.ops.products"}

Seconds = dict[str, tuple[float, float]]
"""Of the clock and of the CPU, by part."""


def seconds_by_part(work: Callable[[], Any], waited: Callable[[], float]) -> Seconds:
    """Run `work`, a step of this trainer; `waited` reads how long its exchanges have been waited for so far."""
    mode = _PartsMode()
    before = waited()
    clock, of_thread, of_process = time.perf_counter(), time.thread_time(), time.process_time()
    with mode, _also_in_backward(mode):
        work()
    clock, of_thread = time.perf_counter() - clock, time.thread_time() - of_thread
    of_process = time.process_time() - of_process
    found = {part: (wall, cpu) for part, (wall, cpu) in mode.seconds.items()}
    found[WAITING] = (waited() - before, 0.0)
    found[REST] = (
        clock - sum(wall for wall, _ in found.values()),
        of_thread - sum(cpu for _, cpu in found.values()),
    )
    found[THREADS] = (0.0, max(0.0, of_process - of_thread))
    return found


class _PartsMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._inside = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        part = None if self._inside else self._part(function)
        if part is None:
            return function(*args, **(kwargs or {}))
        self._inside = True
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return function(*args, **(kwargs or {}))
        finally:
            of_part = self.seconds[part]
            of_part[0] += time.perf_counter() - wall
            of_part[1] += time.thread_time() - cpu
            self._inside = False

    def _part(self, function: Any) -> str | None:
        """By the nearest caller outside torch."""
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch"):
            frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module in _MULTIPLYING and getattr(function, "__name__", "") in _PRODUCTS:
            return PRODUCTS
        return _PARTS.get(module)


@contextmanager
def _also_in_backward(mode: _PartsMode) -> Iterator[None]:
    """Torch leaves a mode when it runs backward; the blocks' backward enters it again."""
    function: Any = block_module._BlockFunction
    backward = function.backward

    def entered(*arguments: Any) -> Any:
        with mode:
            return backward(*arguments)

    function.backward = staticmethod(entered)
    try:
        yield
    finally:
        function.backward = staticmethod(backward)
