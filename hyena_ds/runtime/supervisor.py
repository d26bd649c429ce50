"""`hyena-ds supervise`: runs a training command again after a failure, as long as that can help.

    start --> exit code --0, user error, stopped by the user or a deadline--> the same exit code
                |
                +--anything else--> why? (faults.jsonl, newest checkpoint) --> pause --> which hosts? (roster.py) --> start
                                                                                  +--> or give up

No torch: a supervisor is a small process that outlives what it starts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from hyena_ds.checkpoints.directory import LATEST, checkpoints_in, read_note, step_of
from hyena_ds.checkpoints.manifest import STEP_NAME
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError, say
from hyena_ds.files.growing import append_line
from hyena_ds.files.rows import HOSTS_CHANGED, read_faults, read_text
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import WANTED_CODES, name_of
from hyena_ds.runtime.roster import NoHosts, Roster
from hyena_ds.runtime.session import Foreground, heard

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
_OF_NO_HOST = ("raised", "left", "watch")
"""Kinds of faults that say nothing against the host of their rank."""


@dataclass(frozen=True)
class Failure:
    """How one start ended."""

    why: str
    step: int
    """The newest checkpoint's, 0 without one."""
    error: tuple[int, str] | None
    """Step and text of an error that a rank raised."""
    rank: int | None = None
    """The rank that died, was silent or was stuck."""


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
        if failure.error is not None and failure.error == self._error:
            return f"step {failure.error[0]} raised the same error twice in a row"
        self._error = failure.error
        if failure.step > self._step:
            self._step, self._used, self._pause = failure.step, 0, FIRST_PAUSE
        if self._used >= self._allowed:
            return f"restarts without a newer checkpoint: {self._used} (supervisor.restarts_without_progress)"
        self._used += 1
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause


def supervise(
    config: RunConfig, command: Sequence[str], environment: Mapping[str, str], roster: Roster | None = None
) -> int:
    """Run `command`, which trains `config`, until it ends well or cannot; its last exit code. Main thread only.

    The `roster` of its hostfile says which hosts each start gets.
    """
    directory = RunDirectory(config)
    restarts = Restarts(config.supervisor.restarts_without_progress, newest_step(directory))
    foreground = Foreground(environment, _tell)
    starts = 0
    with heard(foreground.hear):
        while True:
            words = command if roster is None else roster.command()
            known = len(read_faults(directory.faults))
            try:
                child = foreground.start(words)
            except OSError as error:
                raise UserError(f"{command[0]}: cannot be started ({error.strerror}); name a launch command") from None
            starts += 1
            code = foreground.ended(child, leaving=WANTED_CODES)
            ended = code in WANTED_CODES and not (starts > 1 and _is_of_hosts(code, roster))
            if ended or foreground.requests.first is not None:
                return code
            failure: Failure | None = failure_of(code, directory, known)
            while failure is not None:
                decision = restarts.after(failure)
                if isinstance(decision, str):
                    _say(f"{failure.why}; giving up: {decision}")
                    return code
                _say(f"{failure.why}; starting again from step {failure.step} in {decision:.0f} s")
                end = time.monotonic() + decision
                while foreground.requests.first is None and time.monotonic() < end:
                    time.sleep(0.1)
                if foreground.requests.first is None:  # asking hosts takes seconds
                    failure = None if roster is None else _change_hosts(roster, failure, directory)
                if foreground.requests.first is not None:
                    return 128 + foreground.requests.first


def _is_of_hosts(code: int, roster: Roster | None) -> bool:
    """Whether what looks like a user's mistake may come of lost hosts: one was lost since the look at all of them, or those that
    were left out just now still hold what is theirs, as a shared file system keeps the lock of a run for a while."""
    if code != UserError.exit_code or roster is None:
        return False
    return roster.has_left_out or not roster.lost().keys().isdisjoint(roster.now.names)


def _change_hosts(roster: Roster, failure: Failure, directory: RunDirectory) -> Failure | None:
    """Choose hosts for the next start, and say what is different; a failure where there are too few."""
    try:  # on other hosts, parts on disks of their own are missing
        said = roster.renew(newest_step(directory, local=False), failure.rank)
    except NoHosts as error:
        return Failure(str(error), failure.step, None)
    if said is not None:
        _say(said)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"time": now, "step": failure.step, "kind": HOSTS_CHANGED, "text": said}
        try:
            append_line(directory.faults, json.dumps(row))
        except OSError as error:  # it was said, and the next start may find room
            _say(f"{directory.faults}: not written ({error.strerror})")
    return None


def failure_of(code: int, directory: RunDirectory, known: int) -> Failure:
    """What a start that ended with `code` failed of: the first fault after the `known` ones, if there is one."""
    step = newest_step(directory)
    faults = read_faults(directory.faults)[known:]
    if not faults:
        return Failure(f"the run ended with exit code {code}", step, None)
    first = faults[0]
    # Without rank, host and process, which differ from start to start.
    error = re.split(r" raised | ended the run: ", first["text"], maxsplit=1)[-1]
    raised = (first["step"], error) if first["kind"] == "raised" else None
    rank = None if first["kind"] in _OF_NO_HOST else first.get("rank")
    return Failure(f"{first['text']} (exit code {code})", step, raised, rank)


def newest_step(directory: RunDirectory, local: bool = True) -> int:
    """Step of the newest complete checkpoint, 0 without one; with `local`, also of those whose parts are on hosts' own disks."""
    newest = read_note(directory.checkpoints)[1] if local else 0
    name = STEP_NAME.fullmatch(read_text(directory.checkpoints / LATEST, 100).strip())
    if name is not None:
        return max(newest, int(name[1]))
    there = checkpoints_in(directory.checkpoints)
    return max(newest, step_of(there[0])) if there else newest


def _tell(number: int, passed_on: bool) -> None:
    if not passed_on:
        _say(f"{name_of(number)}: not starting again")


_say = partial(say, who="hyena-ds supervise")
