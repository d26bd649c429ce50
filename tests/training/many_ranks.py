"""Hundreds of ranks as threads of one process, whose exchanges are real and whose looks at the file system are counted.

    World(ranks, a node).run(work) --a thread a rank--> work(compute) --> [result of each rank], calls[rank][name of a call]

One thread runs at a time: a rank that comes to an exchange leaves its value and lets the next one run, so whoever's turn comes
again finds the values of all. `torch.distributed`'s functions that agreements and the checkpoint's state use are replaced. What
Python opens, lists, makes, renames and removes is heard from its audit hook, stats (which have none) and safetensors' own
opening from replaced functions. Only paths below `root` count.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from hyena_ds.checkpoints import saved_state
from hyena_ds.parallel.devices import Compute

_AUDITED = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.utime",
    "os.truncate",
}
_here = threading.local()
_hooked: list[Callable[[str, object], None]] = []


class Sums(NamedTuple):
    """Calls of the busiest rank (of each kind the most), of the busiest node and of all, and exchanges in which all took part."""

    rank: int
    node: int
    all: int
    exchanges: int


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event in _AUDITED and _hooked:
        _hooked[-1](event, arguments[0])


def rank_here() -> int:
    """The rank that this thread is."""
    return int(_here.rank)


class World:
    """`ranks` ranks, `a_node` of them on each machine."""

    def __init__(self, ranks: int, a_node: int, root: Path):
        self.ranks, self.root = ranks, f"{root}{os.sep}"
        self.nodes = tuple(tuple(range(first, first + a_node)) for first in range(0, ranks, a_node))
        self.calls = [Counter[str]() for _ in range(ranks)]
        self._turns = [threading.Semaphore(0) for _ in range(ranks)]
        self._running = [True] * ranks
        self._exchanges: list[list[Any]] = []
        """What each rank has left at each exchange so far."""
        self._sums: dict[int, torch.Tensor] = {}
        self._errors: list[BaseException] = []

    def run(self, work: Callable[[Compute], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """`work` on every rank; the first error of any."""
        results = [None] * self.ranks

        def rank(number: int) -> None:
            _here.rank, _here.exchanges = number, 0
            self._turns[number].acquire()
            try:
                if not self._errors:
                    results[number] = work(Compute(torch.device("cpu"), "gloo", number, self.ranks, 0, self.nodes))
            except BaseException as error:
                self._errors.append(error)
            self._running[number] = False
            self._let_another_run()

        with monkeypatch.context() as patched, self._counting(patched):
            for name in ("get_rank", "get_world_size", "all_gather_object", "broadcast_object_list", "all_reduce"):
                patched.setattr(dist, name, getattr(self, f"_{name}"))
            threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.ranks)]
            for thread in threads:
                thread.start()
            self._turns[0].release()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return results

    def most(self) -> Counter[str]:
        """The most calls of each kind that a rank has made."""
        return Counter({name: max(calls[name] for calls in self.calls) for calls in self.calls for name in calls})

    def in_sum(self) -> Sums:
        """Calls of every kind together, and exchanges."""
        ranks = [calls.total() for calls in self.calls]
        nodes = [sum(ranks[rank] for rank in node) for node in self.nodes]
        return Sums(self.most().total(), max(nodes), sum(ranks), len(self._exchanges))

    @contextmanager
    def _counting(self, patched: pytest.MonkeyPatch) -> Iterator[None]:
        def count(name: str, path: object) -> None:
            rank = getattr(_here, "rank", None)
            if (
                rank is not None
                and isinstance(path, str | bytes | os.PathLike)
                and os.fsdecode(path).startswith(self.root)
            ):
                self.calls[rank][name] += 1

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **named: Any) -> Any:
                count(name, path)
                return function(path, *arguments, **named)

            return call

        if not _hooked:
            sys.addaudithook(_hear)
        _hooked.append(count)
        patched.setattr(os, "stat", counted("os.stat", os.stat))
        patched.setattr(os, "lstat", counted("os.lstat", os.lstat))
        patched.setattr(saved_state, "safe_open", counted("open", saved_state.safe_open))
        try:
            yield
        finally:
            _hooked[-1] = lambda name, path: None

    def _let_another_run(self) -> None:
        others = ((_here.rank + 1 + step) % self.ranks for step in range(self.ranks))
        following = next((rank for rank in others if self._running[rank]), None)
        if following is not None:
            self._turns[following].release()

    def _exchanged(self, value: Any) -> list[Any]:
        number, _here.exchanges = _here.exchanges, _here.exchanges + 1
        if number == len(self._exchanges):
            self._exchanges.append([None] * self.ranks)
        self._exchanges[number][_here.rank] = value
        self._let_another_run()
        self._turns[_here.rank].acquire()
        if self._errors:
            raise AssertionError("another rank has failed")
        return list(self._exchanges[number])

    def _get_rank(self) -> int:
        return rank_here()

    def _get_world_size(self) -> int:
        return self.ranks

    def _all_gather_object(self, into: list[Any], value: Any) -> None:
        into[:] = self._exchanged(value)

    def _broadcast_object_list(self, values: list[Any], src: int) -> None:
        values[:] = self._exchanged(list(values))[src]

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        number = _here.exchanges
        values = self._exchanged(tensor.clone())
        if number not in self._sums:
            self._sums[number] = torch.stack(values).sum(0, dtype=tensor.dtype)
        tensor.copy_(self._sums[number])
