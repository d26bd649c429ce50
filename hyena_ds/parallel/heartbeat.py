"""Every rank tells rank 0 once a second that it lives and how far it is; rank 0 tells all ranks the first cause of a failure.

    main thread --Pulse--> Member thread --TCP, a JSON object a line--> Monitor thread of rank 0 --Fault--> every Member

The monitor is in parallel/monitor.py. A Member notes the loss of rank 0 itself. Plain sockets and threads, no torch: the
main thread may sit in a collective for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEAT_SECONDS = 1.0
FAULT_CODE = 70
"""EX_SOFTWARE: with it the ranks of a broken run leave."""

TICK = 0.2
PAUSE = 3.0
"""A thread that slept longer than this between two looks was stopped itself, and may not judge the silence of others."""
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
    """raised, died, silent, stuck; or left: the rank was told to leave at once."""
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
        self.roster: list[Place] = []
        self._connection = socket.create_connection((address, port), timeout=silence)
        self._connection.settimeout(BEAT_SECONDS)
        self._lock = threading.Lock()
        self._closed = False
        self._send({"token": token, "place": asdict(place)})
        self._thread = threading.Thread(target=self._serve, daemon=True, name="heartbeat")
        self._thread.start()

    def beat(self) -> None:
        """Send a beat now: fast steps would otherwise come and go between two."""
        self._send(self._beat())

    def raised(self, error: str, of_collective: bool) -> None:
        self._send({**self._beat(), "raised": error, "of_collective": of_collective})

    def left(self, why: str, code: int) -> None:
        self._send({**self._beat(), "left": why, "code": code})

    def close(self) -> None:
        """The run is over for this rank; the monitor does not miss it from here on."""
        self._closed = True
        self._send({"bye": True})

    def _serve(self) -> None:
        unread, fault = b"", None
        sent, heard = 0.0, time.monotonic()
        looked = heard
        selector = selectors.DefaultSelector()
        selector.register(self._connection, selectors.EVENT_READ)
        while not self._closed and fault is None:
            now = time.monotonic()
            if now - sent >= BEAT_SECONDS:
                sent = now
                self._send(self._beat())
            ready = selector.select(TICK)
            now = time.monotonic()
            if now - looked > PAUSE:
                heard += now - looked
            looked = now
            if ready:
                data = received(self._connection)
                if not data:
                    fault = self._lost(
                        "died", "died: its connections closed without a word (killed, out of memory, or crashed)"
                    )
                    break
                heard = now
                *lines, unread = (unread + data).split(b"\n")
                for message in map(json.loads, filter(None, lines)):
                    if "roster" in message:
                        self.roster = [Place(**place) for place in message["roster"]]
                    if "bye" in message:
                        return
                    if "fault" in message:
                        fault = Fault(**message["fault"])
                        break
            elif now - heard > self._silence:
                fault = self._lost(
                    "silent",
                    f"has been silent for {now - heard:.0f} s: its host is dead, its link is cut, or its process has stopped",
                )
        if fault is not None and not self._closed:
            end_culprit(fault, self.roster, self.place)
            self._on_fault(fault)

    def _lost(self, kind: str, seen: str) -> Fault:
        where = f" on {self.roster[0].host} (process {self.roster[0].pid})" if self.roster else ""
        return Fault(
            kind, 0, self._pulse.step, f"rank 0{where} {seen}; seen by rank {self.place.rank} in {self._pulse}"
        )

    def _beat(self) -> dict[str, Any]:
        where, waiting = main_thread_place()
        pulse = {**asdict(self._pulse), "allowed": min(self._pulse.allowed, 1e12)}
        return {"pulse": pulse, "where": where, "waiting": waiting}

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # the reader notes the end of the connection
            self._connection.sendall(line(message))


def speaker(fault: Fault, roster: list[Place]) -> int:
    """The rank that tells the user of a fault: 0, or where that is the one lost, the lowest that can be alive."""
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


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except TimeoutError:
        return b"\n"
    except OSError:
        return b""
