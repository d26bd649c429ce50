"""Runs many runs, each as a command of `hyena-ds` in a session of its own, one after another or a few at once.

    complete? --yes--> next          no --> start or go on --> exit code and last error are written down --> next

A run that fails does not end the others; a signal does, once the runs under way have saved. No torch.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

from hyena_ds.errors import in_one_line
from hyena_ds.redaction import redacted
from hyena_ds.runtime.interruption import STOPPED_CODES, name_of
from hyena_ds.runtime.session import Foreground, heard
from hyena_ds.sweeps.results import Outcome

_ERROR = "hyena-ds: error: "
_LAST_LINES = 50
"""Among which the error of a failed run is looked for."""
_READER_SECONDS = 5.0
_THREADS = "OMP_NUM_THREADS"
_MOST_SAID = 10_000
"""Characters of a line: a run's settings may be many."""


class Runnable(Protocol):
    """A run that may be started, and gone on with."""

    @property
    def number(self) -> int:
        """From 0, among all of them."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def directory(self) -> Path:
        """What it leaves is in there."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Config and overrides."""

    def is_complete(self) -> bool:
        """Whether it has trained to its end."""


def run_all(
    runs: Sequence[Runnable],
    total: int,
    verbs: tuple[str, str] = ("sweep", "train"),
    at_once: int = 1,
    after: Callable[[], object] = lambda: None,
) -> int:
    """Run those of `total` runs; 0 when all are complete at the end, 1 when one failed, else the code of one that was stopped.

    `verbs` are the command that speaks, and the one that a run is. What runs say is shown where they do not run `at_once`;
    then they share the cores. `after` is called at the end of each, by one thread at a time.
    """
    says, verb = verbs

    def say(text: str) -> None:
        print(f"{says}: {in_one_line(text, _MOST_SAID)}", flush=True)

    def one(run: Runnable) -> int:
        where = f"[{run.number + 1}/{total}] {run.name}"
        if run.is_complete():
            say(f"{where}: complete already")
            return 0
        if foreground.requests.first is not None:
            return 128 + foreground.requests.first
        if stopped:
            return stopped[0]
        say(f"{where}: hyena-ds {verb} {shlex.join(map(redacted, run.arguments))}")
        outcome = _outcome(foreground, run, verb, at_once == 1)
        seconds = f"after {outcome.seconds:.0f} s"
        if outcome.exit_code in STOPPED_CODES:
            stopped.append(outcome.exit_code)
            say(f"{where}: stopped {seconds}; the same command goes on")
            return outcome.exit_code
        if outcome.exit_code == 0:
            say(f"{where}: complete {seconds}")
        else:
            say(f"{where}: failed with exit code {outcome.exit_code} {seconds}: {outcome.error}")
        with ending:
            after()
        return outcome.exit_code

    stopped: list[int] = []
    ending = threading.Lock()
    foreground = Foreground(
        _shared(os.environ, at_once), lambda number, _: say(f"{name_of(number)}: no further run is started")
    )
    with heard(foreground.hear), ThreadPoolExecutor(at_once) as pool:
        codes = [*pool.map(one, runs)]
    return next((code for code in codes if code in STOPPED_CODES), int(any(codes)))


def _shared(environment: Mapping[str, str], at_once: int) -> dict[str, str]:
    """The environment of runs that share the cores, unless it says already how many threads they have."""
    if at_once == 1 or _THREADS in environment:
        return dict(environment)
    return {**environment, _THREADS: str(max(1, len(os.sched_getaffinity(0)) // at_once))}


def _outcome(foreground: Foreground, run: Runnable, verb: str, aloud: bool) -> Outcome:
    """Start a run or go on with it, and write down how it ended."""
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "hyena_ds", verb, *run.arguments]
    child = foreground.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    assert child.stdout is not None
    reader = threading.Thread(target=_copy, args=(child.stdout, lines, aloud), daemon=True)
    reader.start()
    code = foreground.ended(child)
    reader.join(_READER_SECONDS)
    error = None if code in (0, *STOPPED_CODES) else last_error(lines)
    outcome = Outcome(code, error, round(time.monotonic() - began, 1))
    outcome.write(run.directory)
    return outcome


def last_error(lines: Sequence[str]) -> str | None:
    """The error among a command's last lines: its own sentence, else the last line that says anything."""
    said = [line.strip() for line in lines if line.strip()]
    sentence = next((line for line in reversed(said) if line.startswith(_ERROR)), None)
    return sentence.removeprefix(_ERROR) if sentence else said[-1] if said else None


def _copy(output: IO[str], lines: deque[str], aloud: bool) -> None:
    for line in output:
        lines.append(line)
        if aloud:
            sys.stdout.write(line)
            sys.stdout.flush()
