"""Every rank tells rank 0 once a second that it lives and how far it is; rank 0 tells all ranks the first cause of a failure.

    main thread --Pulse--> Member thread --TCP, a JSON object a line--> Monitor thread of rank 0 --Fault--> every Member

The monitor is in runtime/monitor.py. A Member notes the loss of rank 0 itself. Plain sockets and threads, no torch: the
main thread may sit in a collective for ever. A message that cannot be read is passed over, and is no sign of life: who sends
nothing else is silent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hyena_ds.runtime.wire import TEXT_LENGTH, Wire, drain, parsed, record, text, whole

BEAT_SECONDS = 1.0
FAULT_CODE = 70
"""EX_SOFTWARE: with it the ranks of a broken run leave."""

TICK = 0.2
LAST_SECONDS = 1.0
"""What the other sides have for taking the last words."""
PAUSE = 3.0
"""A thread that slept longer than this between two looks was stopped itself, and may not judge the silence of others."""
MEETING_SECONDS = 30.0
"""For so long at least a rank calls rank 0, among as many strangers as there may be."""
_CALL_SECONDS = 3.0
_COLLECTIVES = ("torch/distributed/", "hyena_ds/parallel/collectives.py")


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int
    host: str
    machine: str
    """Equal for processes that see each other's process ids."""
    pid: int


@dataclass
class Pulse:
    """How far the main thread is; it writes, the heartbeat reads."""

    phase: str = "start"
    step: int = 0
    doing: str = ""
    progress: int = 0
    """Grows with everything the rank finishes, by the same amounts on every rank."""
    allowed: float = float("inf")
    """Seconds that the phase may last without progress."""

    def __str__(self) -> str:
        at = {"start": "start", "step": f"step {self.step}"}.get(self.phase, f"{self.phase} of step {self.step}")
        return f"{at}, {self.doing}" if self.doing else at

    def enter(self, phase: str, step: int, allowed: float) -> None:
        self.phase, self.step, self.doing, self.allowed = phase, step, "", allowed
        self.progress += 1

    def mark(self, doing: str) -> None:
        self.doing = doing
        self.progress += 1


@dataclass(frozen=True)
class Fault:
    """The first cause of a failure, as all ranks learn it."""

    kind: str
    """raised, died, silent, stuck; left: the rank was told to leave at once; watch: its own watching thread failed."""
    rank: int
    step: int
    text: str
    code: int = FAULT_CODE


def this_place(rank: int) -> Place:
    """Of the calling process."""
    host = socket.gethostname()
    machine = [host]
    for source in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            machine.append(source())
    return Place(rank, host, " ".join(machine), os.getpid())


class Member:
    """The side of every other rank: sends its pulse, and learns of a fault or of the loss of rank 0."""

    def __init__(
        self,
        place: Place,
        address: str,
        port: int,
        token: str,
        silence: float,
        pulse: Pulse,
        on_fault: Callable[[Fault], None],
    ):
        self.place, self._silence, self._pulse, self._on_fault = place, silence, pulse, on_fault
        self._known: dict[int, Place] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._wire = _introduced(address, port, {"token": token, "place": asdict(place)}, max(silence, MEETING_SECONDS))
        self._thread = threading.Thread(target=self._serve, daemon=True, name="heartbeat")
        self._thread.start()

    @property
    def roster(self) -> list[Place]:
        """The places of all ranks by their number; empty until rank 0 has said them."""
        return [self._known[rank] for rank in sorted(self._known)] if 0 in self._known else []

    def beat(self) -> None:
        """Send a beat now: fast steps would otherwise come and go between two."""
        with self._lock:
            if not self._wire.owes:  # rank 0 does not read; another beat would tell it nothing
                self._wire.send(self._beat())

    def raised(self, error: str, of_collective: bool) -> None:
        self._send({**self._beat(), "raised": error[:TEXT_LENGTH], "of_collective": of_collective})

    def left(self, why: str, code: int) -> None:
        self._send({**self._beat(), "left": why[:TEXT_LENGTH], "code": code})

    def close(self) -> None:
        """The run is over for this rank; the monitor does not miss it from here on."""
        self._closed = True
        self._send({"bye": True})
        with self._lock:
            drain([self._wire], LAST_SECONDS)

    def _serve(self) -> None:
        try:
            fault = self._watch()
            if fault is None or self._closed:
                return
            end_culprit(fault, self.roster, self.place)
        except Exception as error:
            fault = broken_watch("heartbeat", self.place, self._pulse.step, error)
            self._send({"fault": asdict(fault)})
        if not self._closed:
            self._on_fault(fault)

    def _watch(self) -> Fault | None:
        """Beat and listen until the run is over (None) or has a fault."""
        sent, heard = 0.0, time.monotonic()
        looked = heard
        selector = selectors.DefaultSelector()
        selector.register(self._wire.fileno(), selectors.EVENT_READ)
        while not self._closed:
            now = time.monotonic()
            if now - sent >= BEAT_SECONDS:
                sent = now
                self.beat()
            ready = selector.select(TICK)
            now = time.monotonic()
            if now - looked > PAUSE:
                heard += now - looked
            looked = now
            with self._lock:
                self._wire.flush()
            try:
                lines = self._wire.lines() if ready else []
            except EOFError:
                return self._lost(
                    "died", "died: its connections closed without a word (killed, out of memory, or crashed)"
                )
            for line in lines:
                try:
                    message = parsed(line)
                    if "bye" in message:
                        return None
                    if "fault" in message:
                        return fault_of(message["fault"])
                    for place in map(place_of, _list(message.get("roster", []))):
                        self._known[place.rank] = place
                except ValueError:
                    continue
                heard = now
            if now - heard > self._silence:
                return self._lost(
                    "silent",
                    f"has been silent for {now - heard:.0f} s: its host is dead, its link is cut, or its process has stopped",
                )
        return None

    def _lost(self, kind: str, seen: str) -> Fault:
        roster = self.roster
        where = f" on {roster[0].host} (process {roster[0].pid})" if roster else ""
        return Fault(
            kind, 0, self._pulse.step, f"rank 0{where} {seen}; seen by rank {self.place.rank} in {self._pulse}"
        )

    def _beat(self) -> dict[str, Any]:
        where, waiting = main_thread_place()
        pulse = {**asdict(self._pulse), "allowed": min(self._pulse.allowed, 1e12)}
        return {"pulse": pulse, "where": where, "waiting": waiting}

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._wire.send(message)


def _introduced(address: str, port: int, introduction: dict[str, Any], seconds: float) -> Wire:
    """A connection on which rank 0 has answered to the introduction. Raises OSError after `seconds`.

    Rank 0 closes one that it could not read at once, where strangers crowd its port: then another is tried.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            # Anew every few seconds: the system's own repetitions become rare, and a place in a full queue is luck.
            connection = socket.create_connection((address, port), timeout=min(left, _CALL_SECONDS))
        except TimeoutError:
            continue
        wire = Wire(connection)
        wire.send(introduction)
        with contextlib.suppress(OSError):
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            if connection.recv(1, socket.MSG_PEEK):
                connection.setblocking(False)
                return wire
        wire.close()
        time.sleep(random.uniform(0.02, 0.2))
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def place_of(found: Any) -> Place:
    """A place that was sent. Raises ValueError; its process can be signalled."""
    place = record(Place, found)
    whole(place.rank, 0), whole(place.pid, 1, (1 << 31) - 1)
    return place


def fault_of(found: Any) -> Fault:
    """A fault that was sent. Raises ValueError; a process can end with its code."""
    fault = record(Fault, found)
    whole(fault.code, 0, 255)
    return fault


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError("no list")
    return found


def broken_watch(who: str, place: Place, step: int, error: Exception) -> Fault:
    """The fault of a thread of the heartbeat or watchdog that met an unexpected error; prints its traceback."""
    traceback.print_exception(error)
    what = text(" ".join(f"{type(error).__name__}: {error}".split()))[: TEXT_LENGTH // 2]
    said = (
        f"the {who} of rank {place.rank} on {place.host} (process {place.pid}) itself failed: {what}; no rank is to blame: "
        "report it with the traceback above, or train without it (watchdog.enabled=false)"
    )
    return Fault("watch", place.rank, step, said)


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


def end_culprit(fault: Fault, roster: list[Place], own: Place) -> None:
    """A silent process of this machine is stopped or hung, and would hear nothing: nothing of the run may remain."""
    for place in roster:
        if (
            fault.kind == "silent"
            and place.rank == fault.rank
            and place.machine == own.machine
            and place.pid != own.pid
        ):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(place.pid, signal.SIGKILL)


def main_thread_place() -> tuple[str, bool]:
    """The innermost line of this program in which the main thread is, and whether it waits in a collective there."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where, waiting = "", False
    while frame is not None:
        name = frame.f_code.co_filename
        waiting = waiting or any(part in name for part in _COLLECTIVES)
        if not where and "site-packages" not in name and "/lib/python" not in name and not name.startswith("<"):
            where = f"{'/'.join(name.split('/')[-3:])}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return where, waiting
