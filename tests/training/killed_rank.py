"""`hyena-ds train` as a rank that kills itself with SIGKILL in the middle of an accumulation.

KILL_STEP: the optimizer step (counted over the run, from 0) whose second micro step kills the rank KILL_RANK.
"""

from __future__ import annotations

import os
import signal

import deepspeed

from hyena_ds.cli import run_process
from hyena_ds.training import run

_train_step = run.train_step
_now = {"step": -1, "micro": 0}
_backward = deepspeed.DeepSpeedEngine.backward


def _noting_step(engine, batch, *rest, **named):  # type: ignore[no-untyped-def]
    _now.update(step=batch.step, micro=0)
    return _train_step(engine, batch, *rest, **named)


def _dying_backward(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
    here = _now["step"] == int(os.environ["KILL_STEP"]) and _now["micro"] == 1
    if here and os.environ["RANK"] == os.environ["KILL_RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
    _now["micro"] += 1
    return _backward(self, *arguments, **keywords)


def plant() -> None:
    """From now on a training of this process kills it when the step comes."""
    run.train_step = _noting_step
    deepspeed.DeepSpeedEngine.backward = _dying_backward


if __name__ == "__main__":
    plant()
    run_process()
