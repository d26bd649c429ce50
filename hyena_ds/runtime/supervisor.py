"""`hyena-ds supervise`: runs a training command again after a failure, as long as that can help.

    start --> exit code --0, user error, stopped by the user or a deadline--> the same exit code
                |
                +--anything else--> why? (faults.jsonl, newest checkpoint) --> pause and start, or give up

No torch: a supervisor is a small process that outlives what it starts.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from hyena_ds.checkpoints.directory import LATEST, checkpoints_in, step_of
from hyena_ds.checkpoints.manifest import STEP_NAME
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import NotFiniteError, UserError
from hyena_ds.files.rows import Row, read_faults, read_text
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import DEADLINE_CODE, SIGNALS, STARTED, Requests, name_of
from hyena_ds.runtime.relay import end_session

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
WANTED_CODES = (
    0,
    UserError.exit_code,
    NotFiniteError.exit_code,
    DEADLINE_CODE,
    *(128 + number for number in SIGNALS),
)
"""Exit codes of a run that ended as somebody wanted, or that would end the same way again."""


@dataclass(frozen=True)
class Failure:
    """How one start ended."""

    why: str
    step: int
    """Of the newest checkpoint, 0 without one."""
    error: tuple[int, str] | None
    """Step and text of an error that a rank raised."""


class Restarts:
    """Whether to start again after a failure, and after how many seconds."""

    def __init__(self, without_progress: int, step: int):
        self._allowed = without_progress
        self._step = step
        self._used = 0
        self._error: tuple[int, str] | None = None
        self._pause = FIRST_PAUSE

    def after(self, failure: Failure) -> float | str:
        """The pause before the next start, or why there is none."""
        same = failure.error is not None and failure.error == self._error
        self._error = failure.error
        if same:
            return f"step {failure.error[0] if failure.error else 0} raised the same error twice in a row"
        if failure.step > self._step:
            self._step, self._used, self._pause = failure.step, 0, FIRST_PAUSE
        if self._used >= self._allowed:
            return f"restarts without a newer checkpoint: {self._used} (supervisor.restarts_without_progress)"
        self._used += 1
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause


def supervise(config: RunConfig, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command`, which trains `config`, until it ends well or cannot; its last exit code. Main thread only."""
    return _Supervisor(RunDirectory(config), config.supervisor.restarts_without_progress).run(command, environment)


class _Supervisor:
    def __init__(self, directory: RunDirectory, without_progress: int):
        self.directory = directory
        self.requests = Requests()
        self.child: subprocess.Popen[bytes] | None = None
        self.restarts = Restarts(without_progress, newest_step(directory))

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        environment = {STARTED: repr(time.monotonic()), **environment}
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in taken}
        try:
            return self._run(command, environment)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        while True:
            known = len(read_faults(self.directory.faults))
            try:
                # A session of its own: a terminal's Ctrl-C comes once, from here.
                self.child = subprocess.Popen(command, env=environment, start_new_session=True)
            except OSError as error:
                raise UserError(f"{command[0]}: cannot be started ({error.strerror}); name a launch command") from None
            if self.requests.first is not None:  # a signal came just before there was anybody to pass it on to
                self.child.send_signal(self.requests.first)
            code = self._ended(self.child)
            if code in WANTED_CODES or self.requests.first is not None:
                return code
            failure = self._failure(code, read_faults(self.directory.faults)[known:])
            decision = self.restarts.after(failure)
            if isinstance(decision, str):
                _say(f"{failure.why}; giving up: {decision}")
                return code
            _say(f"{failure.why}; starting again from step {failure.step} in {decision:.0f} s")
            if not self._slept(decision):
                return 128 + (self.requests.first or 0)

    def _ended(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for the command; its exit code. After a failure nothing of its session remains beside the next start."""
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        if code not in WANTED_CODES:
            end_session(child.pid)
        self.child = None
        child.wait()
        return code

    def _failure(self, code: int, faults: list[Row]) -> Failure:
        step = newest_step(self.directory)
        if not faults:
            return Failure(f"the run ended with exit code {code}", step, None)
        first = faults[0]
        # Without rank, host and process, which differ from start to start.
        error = re.split(r" raised | ended the run: ", first["text"], maxsplit=1)[-1]
        raised = (first["step"], error) if first["kind"] == "raised" else None
        return Failure(f"{first['text']} (exit code {code})", step, raised)

    def _slept(self, seconds: float) -> bool:
        """Whether the pause passed without a signal."""
        end = time.monotonic() + seconds
        while self.requests.first is None and time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return self.requests.first is None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.requests.hear(number, time.monotonic())
        if self.child is not None:
            self.child.send_signal(number)
        else:
            _say(f"{name_of(number)}: not starting again")


def newest_step(directory: RunDirectory) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    name = STEP_NAME.fullmatch(read_text(directory.checkpoints / LATEST, 100).strip())
    if name is not None:
        return int(name[1])
    there = checkpoints_in(directory.checkpoints)
    return step_of(there[0]) if there else 0


def _say(text: str) -> None:
    print(f"hyena-ds supervise: {text}", file=sys.stderr, flush=True)
