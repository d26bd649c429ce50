"""On what a run was started: `environment.jsonl`, a row for every start.

It names versions and machines, and no path, user or variable.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hyena_ds.files.growing import append_line
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute, device_name

_PACKAGES = ("hyena-ds", "torch", "deepspeed", "numpy")


@dataclass(frozen=True)
class Environment:
    """On what one start runs."""

    time: str
    """ISO 8601, UTC."""
    step: int
    """Steps done before."""
    ranks: int
    hosts: dict[str, int]
    """Ranks on each."""
    device: str
    """What a rank computes on; several, where they differ."""
    threads: int
    """Threads of rank 0, for work on the CPU."""
    system: str
    launcher: str
    """Who gave the machines, where that can be seen."""
    versions: dict[str, str]

    @classmethod
    def of_all_ranks(cls, compute: Compute, step: int) -> Environment:
        """The environment of a start that continues after `step`. Collective."""
        places = from_every_rank((platform.node(), device_name(compute)))
        job = os.environ.get("SLURM_JOB_ID")
        launcher = f"Slurm job {job}" if job else "Kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else ""
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            step=step,
            ranks=compute.ranks,
            hosts=dict(Counter(host for host, _ in places)),
            device=", ".join(dict.fromkeys(device for _, device in places)),
            threads=torch.get_num_threads(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            launcher=launcher,
            versions=versions(),
        )

    def append_to(self, file: Path) -> None:
        """Raises OSError that names the file."""
        append_line(file, json.dumps(asdict(self)))


def versions() -> dict[str, str]:
    """Versions of what a run's numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
