"""On what a run was started: `environment.jsonl`, a row for every start.

It names versions and machines, and no path, user or variable.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute, device_name
from hyena_ds.text import now

_PACKAGES = ("hyena-ds", "torch", "deepspeed", "numpy")


def environment_of_all_ranks(compute: Compute, step: int) -> dict[str, Any]:
    """The row of a start that continues after `step`. Collective.

    `time` in UTC; `hosts` with the ranks on each; `device`: what a rank computes on, several where they differ; `threads` of
    rank 0 for work on the CPU; `launcher`: who gave the machines, where that can be seen.
    """
    hosts_and_devices = from_every_rank((platform.node(), device_name(compute)))
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "time": now(),
        "step": step,
        "ranks": compute.ranks,
        "hosts": dict(Counter(host for host, _ in hosts_and_devices)),
        "device": ", ".join(dict.fromkeys(device for _, device in hosts_and_devices)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "launcher": f"Slurm job {job}" if job else "Kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else "",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what a run's numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
