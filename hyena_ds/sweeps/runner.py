"""Runs a sweep's runs one after another, each as `hyena-ds train` in a session of its own.

    complete? --yes--> next          no --> start or go on --> exit code and last error are written down --> next

A run that fails does not end the sweep; a signal does, once the run under way has saved. No torch.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import IO

from hyena_ds.errors import in_one_line
from hyena_ds.redaction import redacted
from hyena_ds.runtime.interruption import SIGNALS, STARTED, Requests, name_of
from hyena_ds.runtime.relay import end_session
from hyena_ds.sweeps.plan import SweepRun
from hyena_ds.sweeps.results import STOPPED_CODES, Outcome, is_complete

_ERROR = "hyena-ds: error: "
_LAST_LINES = 50
"""Among which the error of a failed run is looked for."""
_READER_SECONDS = 5.0
_MOST_SAID = 10_000
"""Characters of a line: a run's settings may be many."""


class Runner:
    """Main thread only."""

    def __init__(self, total: int):
        """`total` runs make the sweep."""
        self._total = total
        self._requests = Requests()
        self._child: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}

    def run(self, runs: Sequence[SweepRun]) -> int:
        """0 when all are complete at the end, 1 when one failed, else the exit code of the run that was asked to stop."""
        self._environment = {STARTED: repr(time.monotonic()), **os.environ}  # `stop_after` counts from here
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in taken}
        try:
            return self._run(runs)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, runs: Sequence[SweepRun]) -> int:
        failed = 0
        for run in runs:
            where = f"[{run.number + 1}/{self._total}] {run.name}"
            if is_complete(run):
                _say(f"{where}: complete already")
                continue
            if self._requests.first is not None:
                return 128 + self._requests.first
            _say(f"{where}: hyena-ds train {shlex.join(map(redacted, run.arguments))}")
            outcome = self._start(run)
            if outcome.exit_code in STOPPED_CODES:
                _say(f"{where}: stopped after {outcome.seconds:.0f} s; the same command goes on")
                return outcome.exit_code
            if outcome.exit_code != 0:
                failed += 1
                _say(
                    f"{where}: failed with exit code {outcome.exit_code} after {outcome.seconds:.0f} s: {outcome.error}"
                )
            else:
                _say(f"{where}: complete after {outcome.seconds:.0f} s")
        return 1 if failed else 0

    def _start(self, run: SweepRun) -> Outcome:
        run.directory.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "hyena_ds", "train", *run.arguments]
        # A session of its own: a terminal's Ctrl-C comes once, from here.
        child = subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._child = child
        if self._requests.first is not None:  # a signal came just before there was anybody to pass it on to
            os.kill(child.pid, self._requests.first)
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        assert child.stdout is not None
        reader = threading.Thread(target=_copy, args=(child.stdout, lines), daemon=True)
        reader.start()
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        end_session(child.pid)
        self._child = None
        child.wait()
        reader.join(_READER_SECONDS)
        error = None if code in (0, *STOPPED_CODES) else last_error(lines)
        outcome = Outcome(code, error, round(time.monotonic() - began, 1))
        outcome.write(run)
        return outcome

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._requests.hear(number, time.monotonic())
        if self._child is not None:
            os.kill(self._child.pid, number)  # not reaped yet; send_signal would do that
        _say(f"{name_of(number)}: no further run is started")


def last_error(lines: Sequence[str]) -> str | None:
    """Of a command's last lines: its own sentence, else the last line that says anything."""
    said = [line.strip() for line in lines if line.strip()]
    sentence = next((line for line in reversed(said) if line.startswith(_ERROR)), None)
    return sentence.removeprefix(_ERROR) if sentence else said[-1] if said else None


def _copy(output: IO[str], lines: deque[str]) -> None:
    for line in output:
        lines.append(line)
        sys.stdout.write(line)
        sys.stdout.flush()


def _say(text: str) -> None:
    print(f"sweep: {in_one_line(text, _MOST_SAID)}", flush=True)
