"""Runs a sweep's runs one after another, each as `hyena-ds train` in a session of its own.

    complete? --yes--> next          no --> start or go on --> exit code and last error are written down --> next

A run that fails does not end the sweep; a signal does, once the run under way has saved. No torch.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import IO

from hyena_ds.errors import in_one_line
from hyena_ds.redaction import redacted
from hyena_ds.runtime.interruption import STOPPED_CODES, name_of
from hyena_ds.runtime.session import Foreground, heard
from hyena_ds.sweeps.plan import Sweep, SweepRun
from hyena_ds.sweeps.results import Outcome

_ERROR = "hyena-ds: error: "
_LAST_LINES = 50
"""Among which the error of a failed run is looked for."""
_READER_SECONDS = 5.0
_MOST_SAID = 10_000
"""Characters of a line: a run's settings may be many."""


def run_all(sweep: Sweep, runs: Sequence[SweepRun]) -> int:
    """Run those of a sweep; 0 when all are complete at the end, 1 when one failed, else the code of the one that was stopped."""
    foreground = Foreground(os.environ, lambda number, _: _say(f"{name_of(number)}: no further run is started"))
    code = 0
    with heard(foreground.hear):
        for run in runs:
            where = f"[{run.number + 1}/{len(sweep.runs)}] {run.name}"
            if run.paths.is_complete():
                _say(f"{where}: complete already")
                continue
            if foreground.requests.first is not None:
                return 128 + foreground.requests.first
            _say(f"{where}: hyena-ds train {shlex.join(map(redacted, run.arguments))}")
            outcome = _outcome(foreground, run)
            after = f"after {outcome.seconds:.0f} s"
            if outcome.exit_code in STOPPED_CODES:
                _say(f"{where}: stopped {after}; the same command goes on")
                return outcome.exit_code
            if outcome.exit_code == 0:
                _say(f"{where}: complete {after}")
            else:
                code = 1
                _say(f"{where}: failed with exit code {outcome.exit_code} {after}: {outcome.error}")
    return code


def _outcome(foreground: Foreground, run: SweepRun) -> Outcome:
    """Start a run or go on with it, and write down how it ended."""
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "hyena_ds", "train", *run.arguments]
    child = foreground.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    assert child.stdout is not None
    reader = threading.Thread(target=_copy, args=(child.stdout, lines), daemon=True)
    reader.start()
    code = foreground.ended(child)
    reader.join(_READER_SECONDS)
    error = None if code in (0, *STOPPED_CODES) else last_error(lines)
    outcome = Outcome(code, error, round(time.monotonic() - began, 1))
    outcome.write(run)
    return outcome


def last_error(lines: Sequence[str]) -> str | None:
    """The error among a command's last lines: its own sentence, else the last line that says anything."""
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
