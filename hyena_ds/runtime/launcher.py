"""Starts the ranks of one machine, and ends them all when one has failed.

    python -m hyena_ds.runtime.launcher RANKS PORT MODULE ARGUMENT ... --environment--> python -m MODULE ARGUMENT ..., RANKS times

The variables are those of DeepSpeed's launcher, which does the same, but imports torch before the first rank starts and looks
at its ranks once a second. No torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from hyena_ds.parallel.listening import LOOPBACK

_LAST_WORDS_SECONDS = 1.0
"""What the others have to say why and end by themselves, after the first that failed."""
_END_SECONDS = 30.0
"""What a rank that was asked to end has before it is killed, as with DeepSpeed's launcher."""


def launch(ranks: int, port: int, module: str, arguments: Sequence[str]) -> int:
    """Run the ranks to their end; 0, or the exit code of the first that failed (128 + the signal that ended it)."""
    command = [sys.executable, "-u", "-m", module, *arguments]
    here = {"WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(ranks):
            own = {**here, "RANK": rank, "LOCAL_RANK": rank}
            process = subprocess.Popen(command, env={**os.environ, **{name: str(own[name]) for name in own}})
            running[process.pid] = process
        return _first_failure(running)
    finally:
        _end(running, time.monotonic())


def _first_failure(running: dict[int, subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended or one has failed; its exit code."""
    while running:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = running.pop(ended.si_pid).wait()
        if code != 0:
            return 128 - code if code < 0 else code
    return 0


def _end(running: dict[int, subprocess.Popen[bytes]], now: float) -> None:
    """Wait for those left to end by themselves, then ask them to, then kill them."""
    for process in running.values():
        _ends_by(process, now + _LAST_WORDS_SECONDS)
    for process in running.values():
        process.terminate()
    for process in running.values():
        if not _ends_by(process, now + _END_SECONDS):
            process.kill()


def _ends_by(process: subprocess.Popen[bytes], moment: float) -> bool:
    try:
        process.wait(max(0.0, moment - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
