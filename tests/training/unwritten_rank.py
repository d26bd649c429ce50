"""`hyena-ds train` as ranks whose disk fills up before step FAULT_STEP (from 0) and until FAULT_UNTIL, if that is set.

No file of rank 0's grows beyond FAULT_BYTES; with FAULT_FILE, that file alone is full, and what it held is beside it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from hyena_ds.cli import run_process
from hyena_ds.training import run

_train_step = run.train_step
_BEFORE = resource.getrlimit(resource.RLIMIT_FSIZE)


def _limited_step(engine, batch, *rest):  # type: ignore[no-untyped-def]
    if os.environ["RANK"] == "0" and batch.step == int(os.environ["FAULT_STEP"]):
        if full := os.environ.get("FAULT_FILE"):
            Path(full).rename(f"{full}.before")
            Path(full).symlink_to("/dev/full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FAULT_BYTES"]), _BEFORE[1]))
    if batch.step == int(os.environ.get("FAULT_UNTIL", -1)):
        resource.setrlimit(resource.RLIMIT_FSIZE, _BEFORE)
    return _train_step(engine, batch, *rest)


if __name__ == "__main__":
    run.train_step = _limited_step
    run_process()
