"""`hyena-ds train` on a workstation: start this machine's ranks.

    cpu_settings(processes) --> environment of the launcher --> environment of every rank, before its C library starts

`launch/cpu.sh` sets the same for other launchers. Importing this module takes no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from hyena_ds.config.limits import MOST_LOCAL_RANKS
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.ops.sizes import GIVEN_BACK
from hyena_ds.parallel.listening import free_port
from hyena_ds.parallel.nodes import ranks_said_here
from hyena_ds.runtime.relay import run_relayed

TUNABLES = {
    "glibc.malloc.hugetlb": "1",
    "glibc.malloc.mmap_threshold": str(GIVEN_BACK),
    "glibc.malloc.trim_threshold": "68719476736",
}
"""Freed tensors below 16 MiB stay with the process, on huge pages: glibc otherwise hands every large one back to the kernel,
and the next tensor of that size pays for its pages again. Larger ones do go back: among small ones they would leave holes
that nothing else fills. Those of a step are few: its large tensors have blocks of their own (ops/large.py)."""

QUIET = {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
"""Keeps libraries from talking, unless the user lets them."""
_DRIVERS = ("/dev/nvidia*", "/dev/nvhost*", "/dev/kfd", "/dev/dxg")
"""What a driver of GPUs leaves on Linux: NVIDIA's on servers and on Tegra, AMD's, and Windows' for its guests."""


def under_launcher() -> bool:
    """Whether this process is already a rank, whoever started it."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def end_rank(code: int) -> NoReturn:
    """End this rank with that exit code, once its files are closed.

    The interpreter's own end takes torch apart while threads of gloo and of the watchdog may still run; now and then that
    aborts the process after a run that went well.
    """
    atexit._run_exitfuncs()  # as the processes of multiprocessing end
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever listened is gone, and the code still counts
            stream.flush()
    os._exit(code)


def local_ranks(config: RunConfig) -> int:
    """Processes to start: what the config says, else one a GPU, else as many as the widest stage needs.

    Raises UserError when the machine has GPUs, but too few, or when no machine has as many processes.
    """
    devices = devices_here()
    if config.local_ranks is not None:
        if devices:
            from hyena_ds.parallel.devices import check_ranks_here

            check_ranks_here(config.local_ranks, devices)
        return config.local_ranks
    ranks = devices or config.widest_sequence_parallel
    if ranks > MOST_LOCAL_RANKS:
        raise UserError(
            f"sequence_parallel: found {ranks:,}, wanted at most {MOST_LOCAL_RANKS:,} processes on one machine; lower it, or "
            "start on several machines"
        )
    return ranks


def devices_here() -> int:
    """Accelerators of this machine that torch can use. Without a driver, or with DS_ACCELERATOR=cpu, it is 0, and takes no
    second of importing torch."""
    driverless = sys.platform == "linux" and not any(glob.glob(driver) for driver in _DRIVERS)
    if driverless or os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    from hyena_ds.parallel.devices import device_count

    return device_count()


def cpu_settings(processes: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables to add to the environment `base` (default: this process's) of `processes` ranks that compute on a CPU.

    What `base` sets itself stays: its OMP_NUM_THREADS, and every tunable that its GLIBC_TUNABLES names. An empty
    GLIBC_TUNABLES keeps all of them away.
    """
    base = os.environ if base is None else base
    settings = {}
    if "OMP_NUM_THREADS" not in base:
        settings["OMP_NUM_THREADS"] = str(max(1, len(usable_cores()) // processes))
    own = base.get("GLIBC_TUNABLES")
    if own != "" and _has_glibc():
        theirs = own.split(":") if own else []
        named = {tunable.partition("=")[0] for tunable in theirs}
        ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in named]
        if ours:
            settings["GLIBC_TUNABLES"] = ":".join(theirs + ours)
    return settings


def usable_cores() -> list[int]:
    """Cores that this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def bind_cores() -> None:
    """With HYENA_BIND_CORES=1, keep this rank on its own share of the machine's cores. Call before a thread starts.

    Nothing happens to one rank, to a process that somebody has bound already, or where ranks outnumber cores.
    """
    ranks = ranks_said_here() or 1
    cores = usable_cores()
    if os.environ.get("HYENA_BIND_CORES") != "1" or sys.platform != "linux" or ranks == 1:
        return
    if len(cores) < max(ranks, os.cpu_count() or 1):
        return
    share = len(cores) // ranks
    first = int(os.environ["LOCAL_RANK"]) * share
    os.sched_setaffinity(0, cores[first : first + share])


def start_local_ranks(arguments: list[str], ranks: int, module: str = "hyena_ds") -> int:
    """Run `python -m MODULE ARGUMENTS` as `ranks` ranks on this machine; returns the exit code, see `run_relayed`."""
    return run_relayed(*local_launch(arguments, ranks, module))


def local_launch(arguments: list[str], ranks: int, module: str) -> tuple[list[str], dict[str, str]]:
    """The command of a launcher for that, and its environment."""
    environment = {**QUIET, **os.environ}
    settings = cpu_settings(ranks, environment)
    if devices_here() == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    else:
        settings.pop("GLIBC_TUNABLES", None)  # tensors are on the GPU; the tunables would only hold host memory
        places = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(str(number) for number in range(ranks))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(places.split(",")[:ranks])
    command = [sys.executable, "-m", "hyena_ds.runtime.launcher", str(ranks), str(free_port()), module, *arguments]
    return command, environment | settings


def _has_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # another C library does not know the name
        return False
