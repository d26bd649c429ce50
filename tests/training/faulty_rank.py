"""`hyena-ds train` as a rank that the machine fails in the middle of the run.

FAULT: memory (no more address space than it has now, and a little), reader (its reading process is killed) or shard (a
shard is cut short). FAULT_STEP: the step, from 0, before which it happens; FAULT_RANK: to which rank.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

from hyena_ds.cli import run_process
from hyena_ds.training import run

_train_step = run.train_step
_SPARE = 2 << 20


def _no_more_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _SPARE,) * 2)


def _kill_the_reader() -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)


def _cut_the_shards() -> None:
    for shard in Path(os.environ["FAULT_SHARDS"]).glob("train-*.tar"):
        os.truncate(shard, 0)


_FAULTS = {"memory": _no_more_memory, "reader": _kill_the_reader, "shard": _cut_the_shards}


def _failed_step(engine, batch, *rest):  # type: ignore[no-untyped-def]
    if batch.step == int(os.environ["FAULT_STEP"]) and os.environ["RANK"] == os.environ["FAULT_RANK"]:
        _FAULTS[os.environ["FAULT"]]()
    return _train_step(engine, batch, *rest)


if __name__ == "__main__":
    run.train_step = _failed_step
    run_process()
