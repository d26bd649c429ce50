"""The one place where device and collective back end are chosen, and where the process group is started."""

from __future__ import annotations

import os
import resource
import socket
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import torch
import torch.distributed as dist

from hyena_ds.errors import LocalError, UserError


@dataclass(frozen=True)
class Compute:
    """Where this process computes and how it talks."""

    device: torch.device
    backend: str
    rank: int
    ranks: int
    local_rank: int


def device_count() -> int:
    """Accelerators of this machine; 0 when ranks compute on the CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_ranks_here(ranks: int, devices: int) -> None:
    """Raise UserError when this machine has accelerators, but not one for each of the `ranks` that start on it."""
    if 0 < devices < ranks:
        raise UserError(
            f"this machine: found {ranks} ranks and {devices} {'GPU' if devices == 1 else 'GPUs'}, wanted a GPU for each "
            f"rank; start at most {devices} here (local_ranks: {devices} or the launcher's number of processes), or let "
            "the ranks see more (CUDA_VISIBLE_DEVICES; empty, they compute on the CPU)"
        )


def start_compute(timeout: timedelta = timedelta(minutes=30)) -> Compute:
    """Choose this rank's device and join the process group, from the launcher's environment (RANK, WORLD_SIZE, ...).

    Without a launcher it is a group of one. Collective. Raises UserError when there are fewer accelerators than ranks,
    and LocalError when another program holds the port of the rendezvous.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    check_ranks_here(
        int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or local_rank + 1), device_count()
    )
    if device_count() > 0:
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compute = Compute(device, backend, rank, ranks, local_rank)
    _join(compute, timeout)
    return compute


def peak_memory_gib(compute: Compute) -> float:
    """Largest of all ranks since the start: device memory on a GPU, else resident memory. Collective."""
    if compute.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(compute.device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    largest = torch.tensor(peak, dtype=torch.float64, device=compute.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def broken_collective(error: BaseException) -> bool:
    """Whether an error says that a collective lost another rank: a consequence, whose cause is elsewhere."""
    # gloo has no error type of its own; its texts name the file of its source.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def interface_to(address: str) -> str | None:
    """Name of the network interface over which this machine reaches `address`; None for this machine itself."""
    import psutil

    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # a datagram socket's connect sends nothing
            probe.connect(target)
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    if ip_address(own.partition("%")[0]).is_loopback:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if own in (each.address for each in addresses)), None)


def _join(compute: Compute, timeout: timedelta) -> None:
    import deepspeed
    import deepspeed.ops

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.update(RANK=str(compute.rank), WORLD_SIZE=str(compute.ranks), LOCAL_RANK=str(compute.local_rank))
    if compute.backend == "gloo" and "GLOO_SOCKET_IFNAME" not in os.environ:
        # gloo takes the interface of the machine's own name, which many systems keep at 127.0.1.1: no host would reach it.
        interface = interface_to(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    # The shared-memory extension serves inference only; building it takes a compiler, 40 s, and a lock that hangs
    # every later run when its builder was killed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(dist_backend=compute.backend, timeout=timeout, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise LocalError(
            f"MASTER_PORT {port}: another program listens on this port, wanted a free one for the ranks to meet; "
            "choose another (--master_port of the launcher, or the variable MASTER_PORT on every machine)"
        ) from None
