"""`hyena-ds train` with trouble: in the second micro step of one optimizer step, one rank does something.

TROUBLE: sleep:SECONDS, raise, stop (SIGSTOP) or kill (SIGKILL). TROUBLE_STEP: the step, counted over the run from 0.
TROUBLE_RANK: the rank, or `all`. TROUBLE_MARK: a file that is made first; while it is there, nothing happens again.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

from hyena_ds.cli import run_process
from hyena_ds.runtime import local_ranks


def trouble() -> None:
    mark = Path(os.environ["TROUBLE_MARK"])
    if mark.exists():
        return
    kind, _, seconds = os.environ["TROUBLE"].partition(":")
    if os.environ["TROUBLE_RANK"] != "all" or os.environ["RANK"] == "0":
        mark.touch()
    if kind == "sleep":
        time.sleep(float(seconds))
    elif kind == "raise":
        raise ValueError("trouble")
    else:
        os.kill(os.getpid(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)


def install() -> None:
    import deepspeed

    from hyena_ds.training import run

    train_step, backward = run.train_step, deepspeed.DeepSpeedEngine.backward
    now = {"step": -1, "micro": 0}

    def noting_step(engine, batch, *rest, **named):  # type: ignore[no-untyped-def]
        now.update(step=batch.step, micro=0)
        return train_step(engine, batch, *rest, **named)

    def troubled_backward(self, *arguments, **named):  # type: ignore[no-untyped-def]
        here = now["step"] == int(os.environ["TROUBLE_STEP"]) and now["micro"] == 1
        if here and os.environ["TROUBLE_RANK"] in (os.environ["RANK"], "all"):
            trouble()
        now["micro"] += 1
        return backward(self, *arguments, **named)

    run.train_step = noting_step
    deepspeed.DeepSpeedEngine.backward = troubled_backward


if __name__ == "__main__":
    if local_ranks.under_launcher():
        install()
    else:
        local_ranks.start_local_ranks = functools.partial(
            local_ranks.start_local_ranks, module="tests.faults.troubled_rank"
        )
    run_process()
