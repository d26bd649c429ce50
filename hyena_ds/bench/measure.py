"""Time and memory of one process.

wall seconds     of the clock, or of device events on an accelerator
CPU seconds      user and system, of all threads of the process: what a step costs whoever else uses the cores
peak memory      resident memory since the process began, or the device's allocated memory
live tensors     the most bytes that the allocator had given out at once, in a step of its own
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.ops.large import plain
from hyena_ds.parallel.devices import (
    Compute,
    compute_alone,
    device_count,
    is_accelerated,
    peak_memory_gib,
    start_compute,
    synchronize,
)
from hyena_ds.runtime.local_ranks import bind_cores, usable_cores
from hyena_ds.training.profile import no_stderr

_CLOCK_TICK = 1e-4
"""CPU seconds below these are not told apart."""


@dataclass(frozen=True)
class Timed:
    """One call on one rank."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory_gib: float
    """The most that the process has held since it began."""
    result: Any

    def answer(self) -> dict[str, float]:
        """What a rank tells its parent."""
        return {name: value for name, value in vars(self).items() if name != "result"}


def start_process(grouped: bool, threads: int) -> Compute:
    """This process's device; in a group, joined to the others (with HYENA_BIND_CORES=1 on its own cores, as in training).

    A process on its own needs no process group.
    """
    torch.set_num_threads(threads)
    if grouped:
        bind_cores()
        return start_compute()
    return compute_alone(int(os.environ.get("LOCAL_RANK", 0)))


def timed(compute: Compute, work: Callable[[], Any]) -> Timed:
    """Run `work` once. In a group all ranks begin together. Collective."""
    if compute.ranks > 1:
        dist.barrier()
    on_device = is_accelerated(compute)
    if on_device:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronize(compute)
        first.record()
    cpu, began = time.process_time(), time.perf_counter()
    result = work()
    if on_device:
        last.record()
        synchronize(compute)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Timed(first.elapsed_time(last) / 1e3 if on_device else wall, cpu, peak_memory_gib(compute), result)


def best_seconds(compute: Compute, work: Callable[[], Any], computes: bool = True, at_least: float = 0.1) -> float:
    """The shortest of repeated calls, after one that is not counted. Collective: a group makes five.

    Work that only `computes` is also timed by the CPU seconds of a thread, which others on the machine do not lengthen.
    """
    timed(compute, work)
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or (calls < 5 if compute.ranks > 1 else spent < at_least and calls < 200):
        once = timed(compute, work)
        busy = once.cpu_seconds / torch.get_num_threads()
        alone = computes and not is_accelerated(compute) and busy > _CLOCK_TICK
        best = min(best, once.wall_seconds, busy if alone else once.wall_seconds)
        spent, calls = spent + once.wall_seconds, calls + 1
    return best


def live_memory_gib(work: Callable[[], Any]) -> float:
    """Peak of live tensors while `work` runs: what was live before, and the allocator's own record of the rest.

    The record is the profiler's, and holds every allocation: inside autograd functions and operators too.
    """
    if device_count():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**30
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _is_tensor(t)}
    live = peak = sum(storages.values())
    with plain(), no_stderr(), torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**30


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    described = {
        "cores": len(usable_cores()),
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch": torch.__version__,
    }
    if device_count():
        described["accelerator"] = torch.cuda.get_device_name()
        described["accelerator_gib"] = torch.cuda.get_device_properties().total_memory / 2**30
    return described


def _cpu_name() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return None


def _is_tensor(thing: Any) -> bool:
    return issubclass(type(thing), Tensor) and thing.layout == torch.strided and not thing.is_meta
