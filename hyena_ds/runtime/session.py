"""Commands that run in sessions of their own: a terminal's Ctrl-C reaches them once, from here, and nothing of them remains.

    signal --heard()--> Foreground --passed on--> the commands under way
    its end --end_session()--> SIGKILL for what is left of its session

No torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import psutil

from hyena_ds.runtime.interruption import STARTED, Requests, take_over

_KILL_SECONDS = 5.0


@contextlib.contextmanager
def heard(hear: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `hear` handle the signals within the block. Main thread only."""
    before = take_over(hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Foreground:
    """Runs commands, and passes on the signals that it hears to those under way. They may be started and waited for by several
    threads; signals are heard by the main one."""

    def __init__(self, environment: Mapping[str, str], tell: Callable[[int, bool], object]):
        """`tell` is called with every signal, and whether there was a command to pass it on to."""
        self.requests = Requests()
        self._environment = {STARTED: repr(time.monotonic()), **environment}  # `stop_after` counts from here
        self._tell = tell
        self._under_way: dict[int, subprocess.Popen[str]] = {}

    def start(self, command: Sequence[str], **output: Any) -> subprocess.Popen[str]:
        """Start a command, whose output goes where Popen is told by `output`. Raises OSError."""
        child = subprocess.Popen(
            command, env=self._environment, start_new_session=True, text=True, errors="replace", **output
        )
        self._under_way[child.pid] = child
        if self.requests.first is not None:  # a signal came just before there was anybody to pass it on to
            os.kill(child.pid, self.requests.first)
        return child

    def ended(self, child: subprocess.Popen[str], leaving: Collection[int] = ()) -> int:
        """Wait for the command; its exit code, or 128 + the signal that ended it.

        Nothing of its session remains, unless the code is one of `leaving`.
        """
        end = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        code = end.si_status if end.si_code == os.CLD_EXITED else 128 + end.si_status
        if code not in leaving:
            end_session(child.pid)
        del self._under_way[child.pid]
        child.wait()
        return code

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.requests.hear(number, time.monotonic())
        under_way = list(self._under_way)
        for child in under_way:
            with contextlib.suppress(ProcessLookupError):  # another thread has reaped it just now
                os.kill(child, number)  # not reaped yet; send_signal would do that
        self._tell(number, bool(under_way))


def end_session(leader: int) -> bool:
    """SIGKILL what still runs in the session of process `leader` (a child of ours, not reaped yet); whether anything did."""
    deadline = time.monotonic() + _KILL_SECONDS
    found = members = members_of(leader)
    while members:
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
        members = members_of(leader)
    return bool(found)


def members_of(session: int) -> list[psutil.Process]:
    """Living processes of a session."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members
