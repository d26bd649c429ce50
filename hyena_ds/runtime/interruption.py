"""What makes a rank stop in good order: SIGTERM, SIGUSR1, SIGHUP, Ctrl-C, a stop file, a deadline.

    signal, stop file --listening thread--+
    deadline -----------------------------+--> votes() --summed over the ranks with the loss--> stop_of() on every rank

Between the first step and the last (`holding`) a request waits for the step's end, where all ranks see it in the same
votes and save. At other times there is nothing to save, and the thread ends the process at once; so does a second Ctrl-C
at any time. The thread hears signals through Python's wake-up descriptor, also while the main thread sits in a collective.
No torch.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hyena_ds.errors import NotFiniteError, UserError, say
from hyena_ds.parallel.nodes import looks_for_others

STOP_FILE = "HYENA_STOP_FILE"
"""Names a file; once it exists, the run stops. It holds the number of the signal that somebody else received. The first
rank of a machine looks for it; the others hear of it by its votes, or by its end."""
STARTED = "HYENA_STARTED"
"""time.monotonic() at the start of the outermost command on this machine, from which the deadline counts."""
AT_ONCE = signal.SIGKILL
"""In the stop file: leave without finishing the step."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
ECHO_SECONDS = 2.0
"""One Ctrl-C reaches a process once from the terminal and again from its launcher: signals closer than this are one."""
DEADLINE_CODE = 75
"""EX_TEMPFAIL: start it again later."""
STOPPED_CODES = (DEADLINE_CODE, *(128 + number for number in SIGNALS))
"""Exit codes of a run that was asked to stop, and saved."""
WANTED_CODES = (0, UserError.exit_code, NotFiniteError.exit_code, *STOPPED_CODES)
"""Exit codes of a run that ended as somebody wanted, or that would end the same way again."""

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Stop:
    """Why all ranks stop, and what they say to the shell."""

    why: str
    code: int


AGAIN = Stop("a second Ctrl-C", 128 + signal.SIGINT)


class Requests:
    """Which signal came first, and whether a later one means "at once"."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._first_at = 0.0

    def hear(self, number: int, now: float) -> bool:
        """Note a signal at time `now`; True for a Ctrl-C that is no echo of the first signal."""
        if self.first is None:
            self.first, self._first_at = number, now
            return False
        return number == signal.SIGINT and now - self._first_at >= ECHO_SECONDS


def name_of(number: int) -> str:
    """A signal's name as users know it."""
    return "Ctrl-C (SIGINT)" if number == signal.SIGINT else signal.Signals(number).name


def take_over(hear: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Let `hear` handle the signals; who handled them before. One that was ignored stays so: nohup stays nohup."""
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, hear) for number in taken}


def request_in(stop_file: Path) -> int | None:
    """The signal that a stop file asks for; any other content, such as that of `touch`, means SIGTERM."""
    try:
        text = stop_file.read_text().strip()
    except OSError:
        return None
    known = {str(int(number)): int(number) for number in (*SIGNALS, AT_ONCE)}
    return known.get(text, int(signal.SIGTERM))


class Interruption:
    """A rank's ear. `listen` before the slow part of a start, `hold` before the first step, `release` after the last."""

    def __init__(self, stop_after: str | None = None, stop_after_seconds: float | None = None):
        late = Stop(f"the deadline (stop_after: {stop_after})", DEADLINE_CODE)
        self._stops = (*(Stop(name_of(number), 128 + number) for number in SIGNALS), late)
        started = float(os.environ.get(STARTED) or time.monotonic())
        self._deadline = math.inf if stop_after_seconds is None else started + stop_after_seconds
        path = (
            os.environ.get(STOP_FILE) if looks_for_others() else None
        )  # what one rank of a machine sees, all agree on
        self._stop_file = Path(path) if path else None
        self._requests = Requests()
        self._holding = False
        self._lock = threading.Lock()
        self.leave: Callable[[Stop], None] = leave_alone
        """Ends the process at once, after telling whom it concerns. Called by the thread."""

    def listen(self) -> None:
        """Take the signals over from their default. Main thread only."""
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        take_over(_heard_by_the_thread)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._serve, daemon=True, name="interruption").start()

    def hold(self) -> None:
        """From here on a request waits for the end of a step."""
        with self._lock:
            self._holding = True

    def release(self) -> None:
        """From here on there is nothing to save."""
        with self._lock:
            self._holding = False

    def votes(self) -> tuple[float, ...]:
        """This rank's word on stopping, one number for each signal and one for the deadline; see `stop_of`."""
        self._look()
        asked = tuple(float(self._requests.first == number) for number in SIGNALS)
        return (*asked, float(time.monotonic() >= self._deadline))

    def stop_of(self, votes: Sequence[float]) -> Stop | None:
        """What the votes of all ranks, added up, mean."""
        return next((stop for stop, count in zip(self._stops, votes, strict=True) if count), None)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._ear], [], [], _LOOK_SECONDS)
            if ready:
                for number in self._ear.recv(64):
                    if number in SIGNALS and self._requests.hear(number, time.monotonic()):
                        self.leave(AGAIN)
            self._look()
            with self._lock:
                if not self._holding:
                    stop = self.stop_of(self.votes())
                    if stop is not None:
                        self.leave(stop)

    def _look(self) -> None:
        """Read the stop file, if there is one."""
        number = request_in(self._stop_file) if self._stop_file is not None else None
        if number == AT_ONCE:
            self.leave(AGAIN)
        elif number is not None and self._requests.first is None:
            self._requests.hear(number, time.monotonic())


def leave_alone(stop: Stop) -> None:
    """End this process at once; rank 0 says why."""
    if os.environ.get("RANK", "0") == "0":
        say_left(stop)
    os._exit(stop.code)


def say_left(stop: Stop) -> None:
    """Tell the user that the run was stopped at once, and what of it is saved."""
    saved = "its newest checkpoint stays" if stop.why == AGAIN.why else "no step was under way, nothing is lost"
    say(f"stopped by {stop.why}: {saved}; the same command goes on")


def _heard_by_the_thread(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has told the thread already; without a handler there would be no wake-up."""
