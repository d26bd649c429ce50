"""A pool of real processes, one per rank, that start once and then run functions together.

    pool.run(function, **kwargs) --one pipe per rank--> function(compute, **kwargs) on every rank --> [result per rank]

A failure or a timeout kills the pool's own processes; the next use starts them anew. This module must not import torch:
a rank sets its environment first.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from hyena_ds.parallel.listening import free_port

_START_TIMEOUT = 300.0
_GRACE = 2.0
"""Seconds that the other ranks get to tell their own error, after the first."""


class RankError(AssertionError):
    """A rank raised, died or did not answer in time; the text holds every rank's traceback."""


class Pool:
    """Processes of one world size. Not started before the first `run`."""

    def __init__(self, world: int):
        self.world = world
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], timeout: float = 300.0, **kwargs: Any) -> list[Any]:
        """`function(compute, **kwargs)` on every rank; the results by rank. `function` must be importable."""
        if not self._processes:
            self._start()
        task = pickle.dumps((function.__module__, function.__qualname__, kwargs))
        try:
            for pipe in self._pipes:
                pipe.send_bytes(task)
            return self._collect(timeout)
        except BaseException:
            self.kill()
            raise

    def process_ids(self) -> list[int]:
        """Process ids of the living pool, by rank; empty when it is not started."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes: ask first, then kill."""
        for pipe in self._pipes:
            try:
                pipe.send_bytes(pickle.dumps(None))
            except OSError:
                continue
        deadline = time.monotonic() + 5.0
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End this pool's own processes at once."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        try:
            for rank in range(self.world):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, rank, self.world, port), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._collect(_START_TIMEOUT)
        except BaseException:
            self.kill()
            raise

    def _collect(self, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        results: dict[int, Any] = {}
        problems: dict[int, str] = {}
        while len(results) + len(problems) < self.world:
            waiting = {pipe: r for r, pipe in enumerate(self._pipes) if r not in results and r not in problems}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting[pipe]  # type: ignore[index]
                try:
                    succeeded, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, OSError):
                    succeeded, value = False, "the process died"
                (results if succeeded else problems)[rank] = value
            if problems:
                deadline = min(deadline, time.monotonic() + _GRACE)
        if len(results) < self.world:
            silent = [rank for rank in range(self.world) if rank not in results and rank not in problems]
            lines = [f"rank {rank} of {self.world}:\n{text}" for rank, text in sorted(problems.items())]
            if silent:
                lines.append(f"no answer from ranks {silent} of {self.world} within {timeout:.0f} s")
            raise RankError("\n".join(lines))
        return [results[rank] for rank in range(self.world)]


def _serve(pipe: Connection, rank: int, world: int, port: int) -> None:
    """The life of one rank."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        CUDA_VISIBLE_DEVICES="",  # these tests mean the CPU, also on a machine with fewer accelerators than ranks
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
    )
    try:
        import torch

        torch.set_num_threads(1)
        from hyena_ds.parallel.devices import start_compute

        compute = start_compute()
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
        return
    pipe.send_bytes(pickle.dumps((True, None)))
    while True:
        try:
            task = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        if task is None:
            break
        try:
            module, name, kwargs = task
            answer = (True, getattr(importlib.import_module(module), name)(compute, **kwargs))
            packed = pickle.dumps(answer)
        except BaseException:
            packed = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(packed)
    os._exit(0)  # the group's other ranks may be gone already; tear nothing down
