"""Rank processes of one side of a benchmark, and how the parent speaks with them. Imports no torch.

    parent --(method, arguments) through a pipe--> every rank's worker --answer or problem--> parent

Each side has processes of its own, so that peak memory is its own and sides can take turns: the parent asks one side for
a step, waits, then asks the next. The allocator's settings must be in the environment before a process starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from hyena_ds.bench.case import Allocator
from hyena_ds.errors import UserError
from hyena_ds.parallel.listening import LOOPBACK, free_port
from hyena_ds.runtime.local_ranks import cpu_settings

_GRACE = 2.0
"""Seconds that the other ranks get to tell their own problem, after the first."""


class DidNotFit(Exception):
    """A side's processes ended for want of memory; the text says how."""


class SideFailed(RuntimeError):
    """A side's process failed, or ended, for no reason that a user could put right; the text is its traceback."""


class WrongValue(UserError):
    """A check of values failed: no time is worth telling."""


_PROBLEMS: dict[str, type[Exception]] = {
    "memory": DidNotFit,
    "value": WrongValue,
    "user": UserError,
    "error": SideFailed,
}
"""Which of several problems is the cause, the first one first."""


class Ranks:
    """Processes that each hold one worker (a class that rank.py makes) and answer together."""

    def __init__(
        self, worker: str, processes: int, grouped: bool, threads: int, allocator: Allocator, **arguments: Any
    ):
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        port = free_port()
        for rank in range(processes):
            ours, theirs = Pipe()
            environment = _environment(processes, threads, allocator)
            environment.update(LOCAL_RANK=str(rank))
            if grouped:
                environment.update(RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
                environment.update(MASTER_ADDR=LOOPBACK, MASTER_PORT=str(port))
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "hyena_ds.bench.rank", str(theirs.fileno())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
            )
            theirs.close()
            self._pipes.append(ours)
        self._send(worker, {"grouped": grouped, "threads": threads, **arguments})

    def __enter__(self) -> Ranks:
        self.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until every worker is made."""
        self._collect()

    def ask(self, method: str, **arguments: Any) -> list[Any]:
        """Every worker's answer, by rank. Raises DidNotFit, or UserError with the first problem; the side is then over."""
        self._send(method, arguments)
        return self._collect()

    def machine(self) -> dict[str, Any]:
        """What the first of them runs on."""
        return self.ask("machine")[0]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pipes, self._processes = [], []

    def _send(self, method: str, arguments: dict[str, Any]) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # a dead process; collecting tells how it ended
                pipe.send((method, arguments))

    def _collect(self) -> list[Any]:
        told: dict[int, tuple[str, Any]] = {}
        deadline = None
        while len(told) < len(self._pipes):
            silent = [pipe for rank, pipe in enumerate(self._pipes) if rank not in told]
            ready = wait(silent, None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for rank in map(self._pipes.index, ready):  # type: ignore[arg-type]
                told[rank] = self._receive(rank)
                if told[rank][0] in _PROBLEMS:
                    # The others may see this rank's end as an error of their own, and tell it first.
                    deadline = deadline or time.monotonic() + _GRACE
        for kind in _PROBLEMS:
            for found, problem in told.values():
                if found == kind:
                    self._fail(_PROBLEMS[kind](problem))
        return [told[rank][1] for rank in range(len(self._pipes))]

    def _receive(self, rank: int) -> tuple[str, Any]:
        try:
            return self._pipes[rank].recv()
        except (EOFError, OSError):
            ended = how_it_ended(self._processes[rank].wait())
            return ("memory" if ended.startswith("SIGKILL") else "error"), ended

    def _fail(self, problem: Exception) -> None:
        """End the side and raise what happened. The others may wait for the failed one: they are killed first."""
        for process in self._processes:
            process.kill()
        self.close()
        raise problem


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code == -signal.SIGKILL:
        return "SIGKILL, as the kernel does when memory runs out"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def available_memory_gib() -> float:
    """Main memory that new processes can have."""
    return psutil.virtual_memory().available / 2**30


def _environment(processes: int, threads: int, allocator: Allocator) -> dict[str, str]:
    """The environment of one rank: this process's, without a launcher's ranks."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= cpu_settings(processes, environment)
    if allocator == "default":
        environment.pop("GLIBC_TUNABLES", None)
    settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return environment | settings | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
