"""Ends a run that cannot go on, on all ranks, within a bounded time, and says why in one sentence.

    start phase    each process alone: it ends itself when the start takes longer than `watchdog.start`
    from then on   runtime/heartbeat.py: a rank that died, is silent, raised an error, or is stuck
    stuck          a rank without progress for longer than its phase allows; the culprit is the rank that is behind

Who tells the user also appends the fault to `runs/NAME/faults.jsonl`, for the supervisor.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.errors import LocalError, say
from hyena_ds.files.growing import append_line
from hyena_ds.parallel.listening import meeting_address
from hyena_ds.redaction import redacted
from hyena_ds.runtime.heartbeat import (
    FAULT_CODE,
    Fault,
    Member,
    Place,
    Pulse,
    broken_watch,
    main_thread_place,
    this_place,
)
from hyena_ds.runtime.interruption import Stop, leave_alone, say_left
from hyena_ds.runtime.monitor import GRACE_SECONDS, Monitor, Seen
from hyena_ds.runtime.relay import RELAY, relay_is_gone

SLOWER = 3.0
"""A step may take so many times what the slowest step took, by its tokens."""
FIRST_SLOWER = 3.0
"""So many times more for a stage's first step: longer contexts take more time a token, and memory is taken anew."""

_LAST_WORDS_SECONDS = 3.0
_LONGEST_WAIT = timedelta(days=24)
"""Milliseconds that fit in 31 bits, as some of torch's waits want."""


def longest_exchange(config: WatchdogConfig) -> timedelta | None:
    """How long the back end lets an exchange last: longer than any rank may be without progress, so that the watchdog is the
    first to end it, and names the cause. None where nothing watches: the back end's own limit is all there is then.
    """
    if not config.enabled:
        return None
    longest = max(config.start, config.step, config.validation, config.save)
    return min(timedelta(seconds=FIRST_SLOWER * longest + config.silence), _LONGEST_WAIT)


class Pace:
    """How long a step may be without progress, from the steps that there were."""

    def __init__(self, least: float):
        self._least = least
        self._slowest = 0.0
        """Seconds a token."""

    def took(self, seconds: float, tokens: int) -> None:
        """Note that a step of `tokens` tokens took so many seconds."""
        self._slowest = max(self._slowest, seconds / tokens)

    def allowed(self, tokens: int, first_of_stage: bool) -> float:
        """Seconds for a step of `tokens`."""
        return max(self._least, SLOWER * self._slowest * tokens) * (FIRST_SLOWER if first_of_stage else 1.0)


def stuck(ranks: list[Seen], now: float) -> Fault | None:
    """The fault of a rank whose progress has ended for longer than its phase allows, while it answers.

    The others wait for the culprit, so it is behind them; where all have done as much, it is the one that does not wait in
    a collective, neither its main thread nor its device.
    """
    late = [seen for seen in ranks if now - seen.progress_at > seen.pulse.allowed]
    if not late:
        return None
    behind = [seen for seen in ranks if seen.pulse.progress == min(other.pulse.progress for other in ranks)]
    busy = [seen for seen in behind if not seen.waiting]
    suspects = busy or behind
    first = suspects[0]
    seconds = now - min(seen.progress_at for seen in late)
    at = f"at {first.where}" if first.where else "in unknown code"
    if len(suspects) < len(ranks):
        which = "is behind the others" if len(behind) < len(ranks) else "is the one that the others wait for"
        text = f"{first} is stuck: no progress for {seconds:.0f} s, and it {which}; it is {at}"
    else:
        text = (
            f"all {len(ranks)} ranks are stuck: no progress for {seconds:.0f} s in {first.pulse}, and none is behind; "
            f"rank {first.place.rank} is {at}"
        )
    text += f"; if that is only slow, raise watchdog.{first.pulse.phase if first.pulse.phase in _BOUNDED else 'step'}"
    return Fault("stuck", first.place.rank, first.pulse.step, text)


_BOUNDED = ("start", "validation", "save")
"""Phases whose bound is a setting of that name; a step's is `step`, and the count at the end has none."""


def speaker(fault: Fault, roster: list[Place]) -> int:
    """The rank that tells the user of a fault: 0, or where that is the one lost, the lowest that can be alive.

    A rank whose own watching failed says so itself.
    """
    if fault.kind == "watch":
        return fault.rank
    if fault.rank != 0 or fault.kind not in ("died", "silent"):
        return 0
    others = [place for place in roster if place.rank != 0]
    elsewhere = [place for place in others if place.machine != roster[0].machine]
    candidates = elsewhere if fault.kind == "silent" and elsewhere else others
    return min((place.rank for place in candidates), default=1)


class Watchdog:
    """What the main thread of a rank tells of itself, and who watches it."""

    def __init__(self, config: WatchdogConfig, faults: Path):
        self.config = config
        self._faults = faults
        self._pulse = Pulse(allowed=config.start)
        self._pace = Pace(config.step)
        self._began = time.monotonic()
        self._tokens = 0
        self._stage: int | None = None
        self._side: Monitor | Member | None = None
        self._place = this_place(int(os.environ.get("RANK", 0)))
        self._over = threading.Event()
        self._speaking = threading.Lock()
        if config.enabled or RELAY in os.environ:
            threading.Thread(target=self._watch_alone, daemon=True, name="watchdog").start()

    def join(self, ranks: int, share: Callable[[Any], Any], all_succeed: Callable[[Callable[[], Any]], Any]) -> None:
        """Connect to rank 0's monitor. Collective.

        `share` gives rank 0's value to all ranks; `all_succeed` runs a function everywhere and raises its error everywhere.
        """
        if not self.config.enabled:
            return
        rank, silence = self._place.rank, self.config.silence
        address = meeting_address()
        monitor: Monitor | None = None
        if rank == 0:
            monitor = Monitor(self._place, ranks, silence, self._pulse, stuck, self._end, address)
        port, token = share((monitor.port, monitor.token) if monitor else None)

        def side() -> Monitor | Member:
            try:
                return monitor or Member(self._place, address, port, token, silence, self._pulse, self._end)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"rank {rank} cannot reach rank 0's heartbeat at port {port} ({error.strerror or error}); open the "
                    "port, or set watchdog.enabled=false",
                    address,
                ) from None

        self._side = all_succeed(side)

    def look_at(self, device_waits: Callable[[], bool]) -> None:
        """From now on ask `device_waits` whether this rank's device waits for an exchange; any thread may call it."""
        if self._side is not None:
            self._side.device_waits = device_waits

    def begin_step(self, step: int, stage: int, tokens: int) -> None:
        """A training step begins; `step` is its number in metrics.jsonl."""
        first = stage != self._stage
        self._stage, self._tokens, self._began = stage, tokens, time.monotonic()
        self._enter("step", step, self._pace.allowed(tokens, first))

    def end_step(self) -> None:
        """Note that the step is done, and how long it took."""
        self._pace.took(time.monotonic() - self._began, self._tokens)

    def enter(self, phase: str, step: int) -> None:
        """Something other than a step begins: validation, save or finish."""
        self._enter(phase, step, getattr(self.config, phase) if phase in _BOUNDED else float("inf"))

    def mark(self, doing: str) -> None:
        """The main thread has come to `doing`; every rank marks the same."""
        self._pulse.mark(doing)

    def failed(self, error: BaseException, of_collective: bool) -> None:
        """The main thread has met an unexpected error. Ends the process with the first cause; returns if nobody watches.

        Call it where the error was caught. An error `of_collective` is a consequence: another rank's end is its cause.
        """
        if self._side is None:
            return
        if isinstance(error, LocalError):  # a sentence for the user, which the first cause repeats
            summary = f"ended the run: {error}"
        else:
            summary = redacted(" ".join(f"raised {type(error).__name__}: {error}".split()))
            if not of_collective:
                traceback.print_exc()
        self._side.raised(summary, of_collective)
        time.sleep(GRACE_SECONDS + _LAST_WORDS_SECONDS if of_collective else _LAST_WORDS_SECONDS)
        if of_collective:  # nobody knows a better cause
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAULT_CODE)

    def leave(self, stop: Stop) -> None:
        """End the process at once because the user wants it, and with it the other ranks."""
        side = self._side
        if side is None:
            leave_alone(stop)
            return
        if self._place.rank == 0:
            self._speaking.acquire()
            say_left(stop)
        side.left(stop.why, stop.code)
        time.sleep(0.2)
        os._exit(stop.code)

    def close(self) -> None:
        """The run is over for this rank."""
        self._over.set()
        if self._side is not None:
            self._side.close()

    def _enter(self, phase: str, step: int, allowed: float) -> None:
        self._pulse.enter(phase, step, allowed)
        if self._side is not None:
            self._side.beat()

    def _watch_alone(self) -> None:
        """Before there is anybody to tell, and for the end of whoever started this rank."""
        try:
            self._wait_alone()
        except Exception as error:
            self._end(broken_watch("watchdog", self._place, self._pulse.step, error))

    def _wait_alone(self) -> None:
        began = time.monotonic()
        while not self._over.wait(1.0):
            if relay_is_gone():
                os._exit(FAULT_CODE)
            waited = time.monotonic() - began
            if self.config.enabled and self._side is None and waited > self.config.start:
                where, _ = main_thread_place()
                text = (
                    f"{self._place.named()} has been starting for {waited:.0f} s without reaching all other ranks; it is at "
                    f"{where or 'unknown code'}; look whether every rank was started and reaches MASTER_ADDR, or raise "
                    "watchdog.start"
                )
                fault = Fault("stuck", self._place.rank, 0, text)
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    self._tell(fault)
                os._exit(FAULT_CODE)

    def _end(self, fault: Fault) -> None:
        """All ranks come here, each in its heartbeat's thread, while the main thread may wait in a collective."""
        try:
            roster = self._side.roster if self._side is not None else []
            if self._place.rank == speaker(fault, roster):
                self._tell(fault)
        finally:
            os._exit(fault.code)

    def _tell(self, fault: Fault) -> None:
        self._speaking.acquire()  # for good: the process is about to end
        if fault.kind == "left":
            say_left(Stop(fault.text, fault.code))
            return
        say(f"error: {fault.text}")
        append_fault(self._faults, fault)


def append_fault(faults: Path, fault: Fault) -> None:
    """A line of faults.jsonl. A disk that is full or gone does not hide the sentence on the terminal."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"time": now, "step": fault.step, "rank": fault.rank, "kind": fault.kind, "text": fault.text}
    row["seen_on"] = socket.gethostname()  # where hosts lost each other, each side has its own view
    try:
        faults.parent.mkdir(parents=True, exist_ok=True)
        append_line(faults, json.dumps(row))
    except OSError as error:
        say(f"{faults}: not written ({error.strerror})")
