"""Runs a launcher so that a signal stops its ranks in good order.

    Ctrl-C, SIGTERM, SIGUSR1, SIGHUP --> this process --stop file--> every rank finishes its step, saves, leaves
                                              |
                                    launcher in a session of its own: no signal reaches it

DeepSpeed's launcher would end its ranks one after another, each after 30 seconds, and dies of SIGUSR1, leaving them behind.
`python -m hyena_ds.runtime.relay COMMAND ...` is the same for a shell script. No torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from hyena_ds.errors import say
from hyena_ds.files.whole import write_whole
from hyena_ds.runtime.interruption import AGAIN, AT_ONCE, STARTED, STOP_FILE, Requests, name_of
from hyena_ds.runtime.session import end_session, heard, members_of

RELAY = "HYENA_RELAY_PID"
"""The process without which the ranks of this machine leave: the one that relays signals to them, or, on a host that ssh
has reached, sshd's for the connection."""
LEFT_BEHIND_CODE = 70
"""The launcher ended and left ranks behind, whatever it returned."""

_AT_ONCE_SECONDS = 2.0
_LAST_SECONDS = 2.0
"""What the launcher started may take to end after it."""


def run_relayed(
    command: Sequence[str], environment: Mapping[str, str], overdue: Callable[[], bool] = lambda: False
) -> int:
    """Run the launcher `command`; its exit code, or 128 + signal when it was stopped before its end. Main thread only.

    No process of the launcher's session outlives the call, nor the time when it is `overdue`.
    """
    with tempfile.TemporaryDirectory(prefix="hyena-stop-") as directory:
        stop_file = Path(environment.get(STOP_FILE) or Path(directory) / "stop")
        stop_file.unlink(missing_ok=True)
        own = {STOP_FILE: str(stop_file.absolute()), RELAY: str(os.getpid())}
        started = {STARTED: environment.get(STARTED) or repr(time.monotonic())}
        try:
            return _Relay(stop_file, overdue).run(command, {**environment, **own, **started})
        finally:
            stop_file.unlink(missing_ok=True)


def relay_is_gone() -> bool:
    """Whether this process was started under a relay that does not live any more: nobody waits for its work."""
    relay = os.environ.get(RELAY)
    return relay is not None and not psutil.pid_exists(int(relay))


class _Relay:
    def __init__(self, stop_file: Path, overdue: Callable[[], bool]):
        self.stop_file, self.overdue = stop_file, overdue
        self.requests = Requests()
        self.at_once: float | None = None
        """When a second Ctrl-C came."""
        self._asked: int | None = None
        """What the ranks were asked last."""

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        # Handlers first: a signal between the launcher's start and theirs would leave it alone in its session.
        with heard(self._hear):
            launcher = subprocess.Popen(command, env=environment, start_new_session=True)
            left_behind = self._wait(launcher)
            code = launcher.wait()
        return self._code(128 - code if code < 0 else code, left_behind)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> bool:
        """Until the launcher has ended; whether it left processes behind. It is not reaped, so its id stays its own."""
        while os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            self._ask()
            late = self.at_once is not None and time.monotonic() - self.at_once > _AT_ONCE_SECONDS
            if late or self.overdue():
                return end_session(launcher.pid)
            time.sleep(0.1)
        ended = time.monotonic()
        while members_of(launcher.pid) and time.monotonic() - ended < _LAST_SECONDS:
            time.sleep(0.1)
        return end_session(launcher.pid)

    def _code(self, code: int, left_behind: bool) -> int:
        if self.at_once is not None:
            return AGAIN.code
        asked = self.requests.first
        if asked is not None and (code >= 128 or left_behind):
            return 128 + asked
        if left_behind and code == 0:
            say("the launcher ended before its ranks; they were ended too")
            return LEFT_BEHIND_CODE
        return code

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # No more than a note: the next signal may come while this one is handled.
        now = time.monotonic()
        if self.requests.hear(number, now) and self.at_once is None:
            self.at_once = now

    def _ask(self) -> None:
        """Ask the ranks what they were not asked yet."""
        number = self.requests.first
        if self.at_once is not None:
            if self._asked != AT_ONCE:
                self._asked = int(AT_ONCE)
                write_whole(self.stop_file, f"{int(AT_ONCE)}\n")
        elif number is not None and self._asked is None:
            self._asked = number
            if not self.stop_file.exists():
                write_whole(self.stop_file, f"{number}\n")
                print(file=sys.stderr)  # below a terminal's ^C
                say(f"{name_of(number)}: the run finishes its step, saves and leaves; Ctrl-C again ends it at once")


if __name__ == "__main__":
    sys.exit(run_relayed(sys.argv[1:], os.environ))
