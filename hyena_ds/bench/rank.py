"""The life of one process of a benchmark: make a worker, then do what the parent asks until its pipe closes.

    python -m hyena_ds.bench.rank FD         FD: the process's end of the parent's pipe

The first message names the worker's class ("module:Class"), later ones its methods, or the machine.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from hyena_ds.bench.processes import WrongValue
from hyena_ds.errors import UserError

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def main() -> None:
    """Serve the parent. Ends without tearing down: the group's other ranks may be gone already."""
    pipe = Connection(int(sys.argv[1]))
    _die_first()
    worker: Any = None
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            if worker is None:
                worker, answer = _make(name, **arguments), None
            else:
                answer = _machine() if name == "machine" else getattr(worker, name)(**arguments)
            message = ("answer", answer)
        except BaseException as problem:
            message = _told(problem)
        with contextlib.suppress(OSError):  # the parent is gone; the next recv ends this process
            pipe.send(message)


def _make(name: str, grouped: bool, threads: int, **arguments: Any) -> Any:
    from hyena_ds.bench.measure import start_process

    compute = start_process(grouped, threads)
    module, kind = name.split(":")
    return getattr(importlib.import_module(module), kind)(compute, **arguments)


def _machine() -> dict[str, Any]:
    from hyena_ds.bench.measure import machine

    return machine()


def _told(problem: BaseException) -> tuple[str, str]:
    text = str(problem)
    if isinstance(problem, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return "memory", f"{type(problem).__name__}: {text.splitlines()[0] if text else 'out of memory'}"
    if isinstance(problem, WrongValue):
        return "value", text
    if isinstance(problem, UserError):
        return "user", text
    return "error", traceback.format_exc()


def _die_first() -> None:
    """Ask the kernel to end this process before any other when memory runs out."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


if __name__ == "__main__":
    main()
