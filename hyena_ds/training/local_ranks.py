"""`hyena-ds train` on a workstation: start the `deepspeed` launcher with this machine's ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from hyena_ds.config.schema import RunConfig


def under_launcher() -> bool:
    """Whether this process is already a rank of the deepspeed launcher or torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_ranks(config: RunConfig) -> int:
    """Processes to start: what the config says, else one a GPU, else as many as the widest stage needs."""
    if config.local_ranks is not None:
        return config.local_ranks
    from hyena_ds.parallel.devices import device_count

    return device_count() or config.widest_sequence_parallel


def start_local_ranks(arguments: list[str], ranks: int) -> int:
    """Run `hyena-ds ARGUMENTS` as `ranks` ranks on this machine; returns the exit code of the launcher."""
    from hyena_ds.parallel.devices import device_count

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    if device_count() == 0:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", "--num_accelerators", str(ranks)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    command += ["--module", "hyena_ds", *arguments]
    code = subprocess.run(command, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
