"""The one place where device and collective back end are chosen, and where the process group is started."""

from __future__ import annotations

import errno
import glob
import os
import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from hyena_ds.errors import LocalError, UserError
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.listening import LOOPBACK, all_ranks_here, interface_to, listen
from hyena_ds.parallel.nodes import Nodes, nodes_of, ranks_said_here

_NVIDIA_DEVICES = "/dev/nvidia[0-9]*"
_UNWATCHED_NCCL = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
"""NCCL's own watchdog would end the first rank that sees an error, which is seldom the one that made it, and be blamed."""
_BACK_ENDS_OWN = {"gloo": timedelta(minutes=30), "nccl": timedelta(minutes=10)}
"""How long torch lets an exchange last where nobody says anything else."""
_GOODBYE_SECONDS = 10.0
"""For which rank 0 keeps its store for ranks that have yet to read why they end."""


@dataclass(frozen=True)
class Compute:
    """Where this process computes and how it talks."""

    device: torch.device
    backend: str
    rank: int
    ranks: int
    local_rank: int
    known_nodes: Nodes = ()

    @property
    def nodes(self) -> Nodes:
        """The ranks of every node; each rank alone where that is not known."""
        return self.known_nodes or tuple((rank,) for rank in range(self.ranks))

    @property
    def node(self) -> tuple[int, ...]:
        """The ranks of this one's node, itself among them."""
        return next(ranks for ranks in self.nodes if self.rank in ranks)

    @property
    def leads(self) -> bool:
        """Whether it is the first of its node, which looks at files for the others."""
        return self.node[0] == self.rank


def device_count() -> int:
    """Accelerators that ranks of this machine compute on; 0 when they compute on the CPU.

    DS_ACCELERATOR decides, as it does for DeepSpeed; without it, what torch finds. Raises UserError where that would be the
    CPU of a machine with an NVIDIA device.
    """
    wanted = os.environ.get("DS_ACCELERATOR") or "cuda"
    if wanted == "cpu":
        return 0
    if wanted != "cuda":
        raise UserError(
            f"DS_ACCELERATOR: found {wanted}, wanted cuda or cpu; unset it to take a GPU where there is one"
        )
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if glob.glob(_NVIDIA_DEVICES) and not hidden:
        build = f"torch {torch.__version__}" + (" without CUDA" if torch.version.cuda is None else "")
        raise UserError(
            f"this machine: found an NVIDIA device that {build} cannot use, wanted a working CUDA; install a torch and a "
            "driver that fit each other (nvidia-smi names the driver's CUDA), or set DS_ACCELERATOR=cpu to compute on the CPU"
        )
    if "DS_ACCELERATOR" in os.environ and not hidden:
        raise UserError(
            "DS_ACCELERATOR: found cuda on a machine without a CUDA device, wanted cpu or nothing; unset it"
        )
    return 0


def pin_float32() -> None:
    """Let float32 be IEEE's and sums of products be whole: whatever the image's variables say, such as vendors' TF32.

    The filter's sines amplify a rounding of 2^-11 a thousand times.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def check_ranks_here(ranks: int, devices: int) -> None:
    """Raise UserError when this machine has accelerators, but not one for each of the `ranks` that start on it."""
    if 0 < devices < ranks:
        raise UserError(
            f"this machine: found {ranks} ranks and {devices} {'GPU' if devices == 1 else 'GPUs'}, wanted a GPU for each "
            f"rank; start at most {devices} here (local_ranks: {devices} or the launcher's number of processes), or let "
            "the ranks see more (CUDA_VISIBLE_DEVICES; empty, they compute on the CPU)"
        )


def start_compute(timeout: timedelta | None = None, engine: bool = True, watched: bool = False) -> Compute:
    """Choose this rank's device and join the process group, from the launcher's environment (RANK, WORLD_SIZE, ...).

    Without a launcher it is a group of one. An exchange may last for `timeout`; by default as long as the back end lets it.
    `engine` says whether DeepSpeed's engine will use it too, `watched` whether a watchdog of ours ends ranks whose exchanges
    do not end: without one NCCL's stays. Collective. Raises UserError when there are fewer accelerators than ranks, and
    LocalError when another program holds the port of the rendezvous.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    devices = device_count()
    here = ranks_said_here()
    check_ranks_here(here or local_rank + 1, devices)
    device = _device(local_rank)
    os.environ["DS_ACCELERATOR"] = device.type  # DeepSpeed looks no further
    pin_float32()
    compute = Compute(device, "nccl" if devices else "gloo", rank, ranks, local_rank)
    if devices and watched:
        for name, value in _UNWATCHED_NCCL.items():
            os.environ.setdefault(name, value)
    _join(compute, timeout or _BACK_ENDS_OWN[compute.backend], engine)
    claim = socket.gethostname(), local_rank, here
    return replace(compute, known_nodes=nodes_of(from_every_rank(claim)) if ranks > 1 else ())


def compute_alone(local_rank: int = 0) -> Compute:
    """This process's device, for work that no other process shares: there is no process group."""
    pin_float32()
    return Compute(_device(local_rank), "", 0, 1, local_rank)


def is_accelerated(compute: Compute) -> bool:
    """Whether work is queued on a device of its own, and goes on behind the host's back."""
    return compute.device.type != "cpu"


def start_of_readers() -> str | None:
    """How a process that reads beside this one has to start; None: as the system does it.

    A forked one would have this one's CUDA context and NCCL's threads' locks, and may do nothing with them. One that is spawned
    costs its imports, once a stage, and is a child of this process as a forked one is: its end is seen as soon, which those
    of a server of forks would not be.
    """
    return "spawn" if torch.cuda.is_initialized() else None


def synchronize(compute: Compute) -> None:
    """Wait for all that is queued on the device."""
    if is_accelerated(compute):
        torch.cuda.synchronize(compute.device)


def _device(local_rank: int) -> torch.device:
    devices = device_count()
    if not devices:
        return torch.device("cpu")
    # Tensors of every stage and size of tile share the memory; read when the allocator is first asked.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cuda", local_rank % devices)
    torch.cuda.set_device(device)
    return device


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`. To an accelerator it goes from pinned memory, whole numbers of small size as single bytes, and nobody
    waits for it."""
    if device.type == "cpu":
        return x.to(device)
    small = x.dtype == torch.int64 and int(x.amin()) >= -128 and int(x.amax()) < 128
    sent = x.to(torch.int8) if small else x
    if torch.accelerator.is_available():
        sent = sent.pin_memory()
    return sent.to(device, non_blocking=True).to(x.dtype)


def peak_memory_gib(compute: Compute) -> float:
    """Most that this rank has held since the start: what torch had reserved of a GPU's memory, else resident memory."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_reserved(compute.device) / 2**30
    try:  # ru_maxrss also counts what the process was before it became this program
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine_memory_gib(compute: Compute) -> float:
    """Memory that this machine has: of this rank's GPU, else main memory."""
    if compute.device.type == "cuda":
        return float(torch.cuda.mem_get_info(compute.device)[1]) / 2**30
    import psutil

    return float(psutil.virtual_memory().total) / 2**30


def largest_of_ranks(values: Sequence[float], compute: Compute, group: dist.ProcessGroup | None = None) -> list[float]:
    """The largest of all ranks, or those of a group, number by number, in one exchange. Collective."""
    largest = torch.tensor(values, dtype=torch.float64, device=compute.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return [float(value) for value in largest]


def waits_take_time(compute: Compute) -> bool:
    """Whether a process stands still while it waits for an exchange, so that a clock sees the wait.

    On a GPU only its queue does, and looking at that would hold the process up.
    """
    return compute.device.type == "cpu"


def device_name(compute: Compute) -> str:
    """What this rank computes on, in words."""
    return torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else "CPU"


def exchange_options(group: dist.ProcessGroup | None = None) -> object | None:
    """Options of a group whose exchanges run beside work: on a device before it, in a stream of high priority."""
    if dist.get_backend(group) != "nccl":
        return None
    return dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)


def bound_exchanges(timeout: timedelta) -> None:
    """Let exchanges last for `timeout` in every group that this process has: groups that others made, such as DeepSpeed's copy
    of the world, have torch's own limit, whatever the world's is."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def broken_collective(error: BaseException) -> bool:
    """Whether an error says that a collective lost another rank: a consequence, whose cause is elsewhere."""
    # gloo has no error type of its own; its texts name the file of its source.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def serve_store(address: str, port: int) -> dist.TCPStore:
    """Serve torch's store to those who call `address`, and to nobody else where this machine can tell which address that is.

    While the value is held, a store that torch makes for `port` in this process finds this server. Raises OSError where
    the port is taken.
    """
    listening = listen(address, port).detach()
    return dist.TCPStore(
        address, port, is_master=True, multi_tenant=True, wait_for_workers=False, master_listen_fd=listening
    )


def _join(compute: Compute, timeout: timedelta, engine: bool) -> None:
    # torchrun has its own store, which listens already, and where it says.
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    os.environ.setdefault("MASTER_ADDR", LOOPBACK)
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.update(RANK=str(compute.rank), WORLD_SIZE=str(compute.ranks), LOCAL_RANK=str(compute.local_rank))
    if all_ranks_here() and not has_store:
        os.environ["MASTER_ADDR"] = LOOPBACK
    _choose_interface(compute)
    store = None
    if compute.rank == 0 and not has_store:
        port = os.environ["MASTER_PORT"]
        try:
            store = serve_store(os.environ["MASTER_ADDR"], int(port))
        except (OSError, OverflowError, ValueError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "another program listens on this port" if taken else f"cannot be listened on ({error})"
            raise LocalError(
                f"MASTER_PORT {port}: {why}, wanted a free one for the ranks to meet; choose another (--master_port of the "
                "launcher, or the variable MASTER_PORT on every machine)"
            ) from None
    _agree_on_the_back_end(compute, timeout, store)
    if engine:
        import deepspeed
        import deepspeed.ops

        # The shared-memory extension serves inference only; building it takes a compiler, 40 s, and a lock that hangs
        # every later run when its builder was killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=compute.backend, timeout=timeout, verbose=False)
    else:
        dist.init_process_group(compute.backend, timeout=timeout)
    del store  # the process group has its own by now, of the same server


def _agree_on_the_back_end(compute: Compute, timeout: timedelta, own: dist.TCPStore | None) -> None:
    """Raise UserError on all ranks unless all talk over the same back end: else each kind would wait for the other for ever.

    The last to say what it has sums up.
    """
    if compute.ranks == 1:
        return
    store = own or dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timeout, wait_for_workers=False
    )
    prefix = f"hyena-ds {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"  # torchrun's store outlives its ranks
    store.add(f"{prefix} {compute.backend}", 1)
    if store.add(f"{prefix} ranks", 1) == compute.ranks:
        on_devices, on_cpus = (store.add(f"{prefix} {backend}", 0) for backend in ("nccl", "gloo"))
        store.set(f"{prefix} agreed", f"{on_devices} {on_cpus}")
    on_devices, on_cpus = map(int, store.get(f"{prefix} agreed").split())
    if on_devices and on_cpus:
        read, patience = store.add(f"{prefix} read", 1), time.monotonic() + _GOODBYE_SECONDS
        while own is not None and read < compute.ranks and time.monotonic() < patience:  # the others read it here
            time.sleep(0.05)
            read = store.add(f"{prefix} read", 0)
        raise UserError(
            f"ranks: found {on_devices} that compute on GPUs and {on_cpus} on CPUs, wanted all on the same; set "
            "DS_ACCELERATOR=cpu for all of them, or find out why torch sees no GPU on some hosts (hyena-ds doctor)"
        )


def _choose_interface(compute: Compute) -> None:
    """Tell gloo, and NCCL where nothing else can be meant, over which interface the ranks reach each other."""
    if compute.backend == "gloo" and "GLOO_SOCKET_IFNAME" not in os.environ:
        # gloo takes the interface of the machine's own name, which many systems keep at 127.0.1.1: no host would reach it.
        interface = interface_to(LOOPBACK if all_ranks_here() else os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    if compute.backend == "nccl" and all_ranks_here():
        # Within a machine NCCL needs sockets only to meet; tensors go over NVLink, PCIe or shared memory. Between machines its
        # own choice stays: it knows the cards. Of this nothing has run on NCCL yet.
        interface = interface_to(LOOPBACK)
        if interface is not None:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
