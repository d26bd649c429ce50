"""Every rank tells rank 0 once a second that it lives and how far it is; rank 0 tells all ranks the first cause of a failure.

    main thread --Pulse--> Member thread --TCP, a JSON object a line--> Monitor thread of rank 0 --Fault--> every Member

The monitor is in runtime/monitor.py. A Member notes the loss of rank 0 itself. Plain sockets and threads, no torch: the
main thread may sit in a collective for ever. A message that cannot be read is passed over, and is no sign of life: who sends
nothing else is silent.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hyena_ds.runtime.wire import TEXT_LENGTH, Wire, drain, parsed, record, text, whole

BEAT_SECONDS = 1.0
FAULT_CODE = 70
"""EX_SOFTWARE: with it the ranks of a broken run leave."""

TICK = 0.2
PAUSE = 3.0
"""A thread that slept longer than this between two looks was stopped itself, and may not judge the silence of others."""
MEETING_SECONDS = 30.0
"""For so long at least a rank calls rank 0, among as many strangers as there may be."""
_CALL_SECONDS = 3.0
_COLLECTIVES = ("torch/distributed/", "hyena_ds/parallel/collectives.py")
_WALK = threading.RLock()
"""Held while frames are walked. A process that forks waits for it, or its child would collect no garbage for ever."""
os.register_at_fork(before=_WALK.acquire, after_in_parent=_WALK.release, after_in_child=_WALK.release)


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int
    host: str
    machine: str
    """Equal for processes that see each other's process ids."""
    pid: int

    def __post_init__(self) -> None:
        whole(self.rank, 0)
        whole(self.pid, 1, (1 << 31) - 1)  # a process that can be signalled

    def named(self, more: str = "") -> str:
        """As a sentence names the rank, with `more` of it within the brackets."""
        return f"rank {self.rank} on {self.host} (process {self.pid}{more})"


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
        """Begin a phase of the run that may last `allowed` seconds without progress."""
        self.phase, self.step, self.doing, self.allowed = phase, step, "", allowed
        self.progress += 1

    def mark(self, doing: str) -> None:
        """Note progress within the phase, and what is done now."""
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

    def __post_init__(self) -> None:
        whole(self.code, 0, 255)  # a process can end with it


OnFault = Callable[[Fault], None]


def this_place(rank: int) -> Place:
    """The place of the calling process."""
    host = socket.gethostname()
    machine = [host]
    for source in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            machine.append(source().strip())
    return Place(rank, host, " ".join(machine), os.getpid())


class Side(ABC):
    """What rank 0's side and those of all others have in common: a thread that watches until the run is over or has a fault."""

    name = "heartbeat"

    def __init__(self, place: Place, silence: float, pulse: Pulse, on_fault: OnFault):
        self.place, self.silence, self._pulse, self._on_fault = place, silence, pulse, on_fault
        self._known: dict[int, Place] = {}
        self._wires: list[Wire] = []
        """To whom this side speaks."""
        self._lock = threading.Lock()
        self._closed = False
        self._looked = 0.0
        self.device_waits: Callable[[], bool] = lambda: False
        """Whether this rank's device waits for an exchange, which the main thread does not show."""
        self._thread = threading.Thread(target=self._serve, daemon=True, name=self.name)

    @property
    def roster(self) -> list[Place]:
        """The places of the ranks by their number; empty until rank 0 has said them."""
        return [self._known[rank] for rank in sorted(self._known)] if 0 in self._known else []

    def close(self) -> None:
        """The run is over for this rank; nobody misses it from here on."""
        with self._lock:
            self._closed = True
            self._tell({"bye": True})
            drain(self._wires)

    def place_now(self) -> tuple[str, bool]:
        """The line of code in which this rank's main thread is, and whether it or the device waits for other ranks."""
        where, waiting = main_thread_place()
        return where, waiting or self.device_waits()

    def _serve(self) -> None:
        self._looked = time.monotonic()
        try:
            fault = self._watch()
        except Exception as error:
            fault = broken_watch(self.name, self.place, self._pulse.step, error)
        if fault is None or self._closed:
            return
        try:
            if self.place.rank == 0 or (fault.kind, fault.rank) == ("watch", self.place.rank):
                with self._lock:
                    self._tell({"fault": asdict(fault)})
                    drain(self._wires)
            end_culprit(fault, self.roster, self.place)
        finally:
            self._on_fault(fault)

    @abstractmethod
    def _watch(self) -> Fault | None:
        """Until the run is over (None) or has a fault."""

    def _tell(self, message: dict[str, Any], only_if_read: bool = False) -> None:
        """To every other side, without waiting for one that does not read; its silence or its end is noted where it is read."""
        for wire in self._wires:
            if not (only_if_read and wire.owes):
                wire.send(message)

    def _is_silent(self, since: float, now: float, share: float = 1.0) -> str:
        """What is said of a rank that was last heard of at `since`; nothing, while that is less than this share of `silence` ago."""
        if now - since <= share * self.silence:
            return ""
        return f"has been silent for {now - since:.0f} s: its host is dead, its link is cut, or its process has stopped"

    def _slept(self, now: float) -> float:
        """For how long this thread was stopped itself since it last looked: others may not be judged by that time."""
        since, self._looked = now - self._looked, now
        return since if since > PAUSE else 0.0


class Member(Side):
    """The side of every other rank: sends its pulse, and learns of a fault or of the loss of rank 0."""

    def __init__(
        self, place: Place, address: str, port: int, token: str, silence: float, pulse: Pulse, on_fault: OnFault
    ):
        super().__init__(place, silence, pulse, on_fault)
        self._wire = _introduced(address, port, {"token": token, "place": asdict(place)}, max(silence, MEETING_SECONDS))
        self._wires = [self._wire]
        self._thread.start()

    def beat(self) -> None:
        """Send a beat now: fast steps would otherwise come and go between two."""
        self._send({}, only_if_read=True)  # who does not read learns nothing from another one

    def raised(self, error: str, of_collective: bool) -> None:
        """Tell rank 0 of an error on this rank, and whether it is that of a collective."""
        self._send({"raised": error[:TEXT_LENGTH], "of_collective": of_collective})

    def left(self, why: str, code: int) -> None:
        """Tell rank 0 that this rank leaves, why, and with which exit code."""
        self._send({"left": why[:TEXT_LENGTH], "code": code})

    def _send(self, news: dict[str, Any], only_if_read: bool = False) -> None:
        where, waiting = self.place_now()
        pulse = {**asdict(self._pulse), "allowed": min(self._pulse.allowed, 1e12)}
        with self._lock:
            self._tell({"pulse": pulse, "where": where, "waiting": waiting, **news}, only_if_read)

    def _watch(self) -> Fault | None:
        """Beat and listen."""
        sent, heard = 0.0, time.monotonic()
        selector = selectors.DefaultSelector()
        selector.register(self._wire.fileno(), selectors.EVENT_READ)
        while not self._closed:
            now = time.monotonic()
            if now - sent >= BEAT_SECONDS:
                sent = now
                self.beat()
            ready = selector.select(TICK)
            now = time.monotonic()
            heard += self._slept(now)
            with self._lock:
                self._wire.flush()
            try:
                lines = self._wire.lines() if ready else []
            except EOFError:
                # Another rank that has missed it a moment sooner ends its process, and with it this connection.
                if silent := self._is_silent(heard, now, share=0.75):
                    return self._lost("silent", silent)
                return self._lost(
                    "died", "died: its connections closed without a word (killed, out of memory, or crashed)"
                )
            for line in lines:
                try:
                    message = parsed(line)
                    if "bye" in message:
                        return None
                    if "fault" in message:
                        return record(Fault, message["fault"])
                    self._meet(message.get("roster", []))
                except ValueError:
                    continue
                heard = now
            if silent := self._is_silent(heard, now):
                return self._lost("silent", silent)
        return None

    def _meet(self, roster: Any) -> None:
        if not isinstance(roster, list):
            raise ValueError("no list")
        for found in roster:
            place = record(Place, found)
            self._known[place.rank] = place

    def _lost(self, kind: str, seen: str) -> Fault:
        rank_0 = self.roster[0].named() if self.roster else "rank 0"
        why = f"{rank_0} {seen}; seen by rank {self.place.rank} in {self._pulse}"
        return Fault(kind, 0, self._pulse.step, why)


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


def broken_watch(who: str, place: Place, step: int, error: Exception) -> Fault:
    """The fault of a thread of the heartbeat or watchdog that met an unexpected error; prints its traceback."""
    traceback.print_exception(error)
    what = text(" ".join(f"{type(error).__name__}: {error}".split()))[: TEXT_LENGTH // 2]
    said = (
        f"the {who} of {place.named()} itself failed: {what}; no rank is to blame: report it with the traceback above, or "
        "train without it (watchdog.enabled=false)"
    )
    return Fault("watch", place.rank, step, said)


def end_culprit(fault: Fault, roster: list[Place], own: Place) -> None:
    """A silent process of this machine is stopped or hung, and would hear nothing: nothing of the run may remain."""
    if fault.kind != "silent":
        return
    for place in roster:
        if (place.rank, place.machine) == (fault.rank, own.machine) and place.pid != own.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(place.pid, signal.SIGKILL)


def main_thread_place() -> tuple[str, bool]:
    """The innermost line of this program in which the main thread is, and whether it waits in a collective there.

    Nothing is collected meanwhile: before Python 3.12 a step from a frame to its caller may collect garbage, which lets the
    main thread run on, and then reads a frame that has ended.
    """
    with _WALK:
        collects = gc.isenabled()
        gc.disable()
        try:
            return _place_of(sys._current_frames().get(threading.main_thread().ident or 0))
        finally:
            if collects:
                gc.enable()


def _place_of(frame: FrameType | None) -> tuple[str, bool]:
    where, waiting = "", False
    while frame is not None:
        name = frame.f_code.co_filename
        waiting = waiting or any(part in name for part in _COLLECTIVES)
        if not where and "site-packages" not in name and "/lib/python" not in name and not name.startswith("<"):
            where = f"{'/'.join(name.split('/')[-3:])}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return where, waiting
