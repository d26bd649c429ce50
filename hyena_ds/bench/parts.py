"""Where the seconds of a step go: every call of torch, by the file that makes it.

    torch.mm, Tensor.mul_, ... --cProfile--> part by (calling module, product or not): seconds of the clock, then of the CPU

What calls do not account for is Python, autograd and the optimizer. CPU seconds of other threads than the step's are those
of the exchange. Synchronous work only, so not on an accelerator.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from cProfile import Profile
from pathlib import Path
from types import CodeType
from typing import Any

from hyena_ds.cost.work import PRODUCTS, TRANSFORMS, WAITING

FILTER = "implicit filter"
PACKING = "packing for exchanges"
THREADS = "threads of exchanges"
NATIVE = "C functions between products"
REST = "Python, autograd, optimizer"
_PARTS = {
    "model.operator": "gates, residual",
    "model.long_convolution": "gates, residual",
    "model.mlp": "MLP besides its products",
    "model.filter": FILTER,
    "model.operator_native": "gates, residual",
    "model.mlp_native": "MLP besides its products",
    "model.filter_native": FILTER,
    "ops.native.functions": NATIVE,
    "model.filter_cache": FILTER,
    "ops.fft_convolution": TRANSFORMS,
    "ops.gelu": "GELU",
    "ops.short_convolution": "short filter",
    "ops.layer_norm": "norms",
    "ops.products": "products' sums and casts",
    "ops.cross_entropy": "head and loss",
    "parallel.layout": PACKING,
    "parallel.collectives": PACKING,
}
_PRODUCTS = re.compile(r"\b(mm|addmm_?|bmm)\b")
_CALLING_BACK = re.compile("autograd|distributed")
"""Functions of torch that wait, or that this trainer's functions are called from."""
_PACKAGE = Path(__file__).parents[1]
_MULTIPLYING = {
    "model.operator",
    "model.mlp",
    "ops.products",
    "model.operator_native",
    "model.mlp_native",
    "ops.native.functions",
}

Seconds = dict[str, tuple[float, float]]
"""Seconds of the clock and of the CPU, by part."""


def seconds_by_part(work: Callable[[], Any], waited: Callable[[], float]) -> Seconds:
    """Run `work`, a step of this trainer, twice; `waited` reads how long its exchanges have been waited for so far."""
    of_clock, of_thread = Profile(), Profile(time.thread_time)
    began, waited_before = time.perf_counter(), waited()
    of_clock.runcall(work)
    wall = _by_part(of_clock, time.perf_counter() - began)
    wall[WAITING] = waited() - waited_before
    wall[REST] -= wall[WAITING]
    began, began_all = time.thread_time(), time.process_time()
    of_thread.runcall(work)
    seconds = time.thread_time() - began
    cpu = {THREADS: max(0.0, time.process_time() - began_all - seconds), **_by_part(of_thread, seconds)}
    return {part: (wall.get(part, 0.0), cpu.get(part, 0.0)) for part in {**wall, **cpu}}


def _by_part(profile: Profile, total: float) -> dict[str, float]:
    """The `total` of seconds by part."""
    seconds = defaultdict[str, float](float)
    for caller in profile.getstats():
        module = _module(caller.code)
        if module not in _PARTS:
            continue
        seconds[_PARTS[module]] += caller.inlinetime
        for call in caller.calls or ():
            name = call.code if isinstance(call.code, str) else call.code.co_filename
            if _module(call.code) is None and not _CALLING_BACK.search(name):
                multiplies = module in _MULTIPLYING and _PRODUCTS.search(name)
                seconds[PRODUCTS if multiplies else _PARTS[module]] += call.totaltime
    seconds[REST] = total - sum(seconds.values())
    return seconds


def _module(code: CodeType | str) -> str | None:
    """The module of this trainer that the code is in, without the package's name."""
    path = Path("" if isinstance(code, str) else code.co_filename)
    return ".".join(path.relative_to(_PACKAGE).with_suffix("").parts) if path.is_relative_to(_PACKAGE) else None
