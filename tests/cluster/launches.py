"""`bash launch/hostfile.sh` on hosts in namespaces: a small run, and what is left of it.

Every run of `write_run` has the losses of the `Reference` of as many steps, which one process computed; sequences are cut in two.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.hosts import Host
from tests.paths import ROOT
from tests.training.runs import make_shards, rows, train, write_config

STEPS = 30
SILENCE = 4
TIMEOUT = 300
"""Seconds for a launch, on a machine that has much else to do."""
GONE_SECONDS = 60
"""Within which nothing runs any more on a host whose link is cut: twice the bound of the silence and more, on such a machine."""


@dataclass(frozen=True)
class Reference:
    """What one process has made of the run."""

    shards: Path
    losses: list[float]


def reference(directory: Path, steps: int = STEPS) -> Reference:
    """Train with one process, sequences whole."""
    shards = make_shards(directory)
    config = write_run(directory, shards, sequence_parallel=1, steps=steps)
    done = train(config, "name=single", "local_ranks=1")
    assert done.returncode == 0, done.stdout + done.stderr
    return Reference(shards, losses(directory / "runs" / "single"))


def write_run(directory: Path, shards: Path, sequence_parallel: int = 2, steps: int = STEPS, **changes: Any) -> Path:
    """The config of the run, in `directory`, which gets its results too."""
    stage = {"context_length": 256, "steps": steps, "global_batch": 8, "micro_batch_size": 1}
    model = {"width": 16, "layers": 2, "maximum_context": 256, "embedding_dropout": 0.1, "residual_dropout": 0.1}
    settings: dict[str, Any] = {
        "model": model,
        "stages": [{**stage, "sequence_parallel": sequence_parallel}],
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": steps, "windows": 2},
        "watchdog": {"silence": SILENCE},
        **changes,
    }
    return write_config(directory / "config.yaml", shards, **settings)


def losses(run: Path) -> list[float]:
    """The loss of every step, in order."""
    found = [(row["step"], row["loss"]) for row in rows(run) if "loss" in row]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return [loss for _, loss in found]


def are_equal(found: list[float], wanted: list[float]) -> bool:
    """Whether two runs have the same losses, to 1e-5."""
    return len(found) == len(wanted) and all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, wanted, strict=True)
    )


class Launch:
    """`bash launch/hostfile.sh HOSTFILE CONFIG ...`, typed on a host."""

    def __init__(
        self,
        host: Host,
        hostfile: Path,
        config: Path | str,
        *overrides: str,
        python: str | Path = sys.executable,
        script: str = "launch/hostfile.sh",
        cwd: Path = ROOT,
        **environment: str,
    ):
        """By default in the repository with this interpreter; `environment` is added to this process's."""
        own = {"PATH": f"{Path(python).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
        command = ["bash", script, hostfile, config, *overrides]
        self._host, self.process = host, host.start(command, own, cwd)

    def reach(self, run: Path, step: int) -> None:
        """Wait until the run has done so many steps."""
        deadline = time.monotonic() + TIMEOUT
        metrics = run / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count('"loss"') < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self._given_up(f"did not come to step {step}")
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """The exit code, and all that was on the terminal."""
        try:
            output = self.process.communicate(timeout=TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            raise self._given_up("did not end") from None
        return self.process.returncode, output

    def _given_up(self, why: str) -> AssertionError:
        self._host.process.kill()  # its power: whatever holds the output open ends
        return AssertionError(f"the launch {why} within {TIMEOUT} s: {self.process.communicate()[0]}")


def ranks(host: Host) -> dict[str, dict[str, str]]:
    """Environments of the ranks that run on a host, by rank."""
    found = {}
    for process in host.processes("hyena_ds"):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if "LOCAL_RANK" in environment:
            found[environment["RANK"]] = environment
    return found


def listening(host: Host) -> set[str]:
    """The addresses on which the ranks of a host listen."""
    rows = host.run("ss", "--listening", "--tcp", "--numeric", "--processes", "--no-header").stdout.splitlines()
    return {row.split()[3].rpartition(":")[0] for row in rows if '("python' in row}


def left(*hosts: Host) -> list[str]:
    """What of a run still runs on the hosts, after it had the time to end."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        found = [f"{host.name}: {process}" for host in hosts for process in _of_runs(host)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def faults(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]


def _of_runs(host: Host) -> list[psutil.Process]:
    return [process for word in ("hyena_ds", "deepspeed", "pdsh") for process in host.processes(word)]
