"""Every rank tells rank 0 once a second that it lives and how far it is; rank 0 tells all ranks the first cause of a failure.

    main thread --Pulse--> Member thread --TCP, a JSON object a line--> Monitor thread of rank 0 --Fault--> every Member

A connection that closes without a farewell is a rank that died. Silence is a host that is dead, a link that is cut or a
process that has stopped. Whether a rank that still answers is stuck, is the judgement of who made the monitor. Ranks lose
rank 0 in the same two ways. Plain sockets and threads, no torch: the main thread may sit in a collective for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
GRACE_SECONDS = 5.0
"""A broken collective is a consequence: for so long the monitor waits for its cause."""
FAULT_CODE = 70
"""EX_SOFTWARE: with it the ranks of a broken run leave."""

_TICK = 0.2
_PAUSE = 3.0
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


@dataclass
class Seen:
    """What the monitor knows of a rank."""

    place: Place
    pulse: Pulse
    heard_at: float
    progress_at: float
    where: str = ""
    """The line of code in which its main thread is."""
    waiting: bool = False
    """Whether that is inside a collective."""
    connection: socket.socket | None = None
    said_bye: bool = False
    lost_collective: str | None = None
    """The error with which one of its collectives broke."""
    lost_at: float = 0.0

    def __str__(self) -> str:
        return f"rank {self.place.rank} on {self.place.host} (process {self.place.pid}, {self.pulse})"


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


class Monitor:
    """Rank 0's side: hears all ranks, judges, and tells all of them. `on_fault` ends the process."""

    def __init__(
        self,
        place: Place,
        ranks: int,
        silence: float,
        pulse: Pulse,
        judge: Callable[[list[Seen], float], Fault | None],
        on_fault: Callable[[Fault], None],
        address: str = "",
    ):
        self.silence, self._ranks, self._pulse, self._judge, self._on_fault = silence, ranks, pulse, judge, on_fault
        self.token = secrets.token_hex(8)
        try:
            self._server = socket.create_server((address, 0), backlog=ranks)
        except OSError:  # the name that others know may be none of this machine's addresses
            self._server = socket.create_server(("", 0), backlog=ranks)
        self.port = int(self._server.getsockname()[1])
        now = time.monotonic()
        self._seen = {place.rank: Seen(place, pulse, now, now)}
        self._unread: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._roster_sent = False
        self._own_error: Fault | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="monitor")
        self._thread.start()

    def raised(self, error: str, of_collective: bool) -> None:
        with self._lock:
            self._own_error = self._note_error(self._seen[0], error, of_collective)

    def left(self, why: str, code: int) -> None:
        """Rank 0 leaves at once: so do all. Does not wait for them."""
        with self._lock:
            self._closed = True
            self._tell({"fault": asdict(Fault("left", 0, self._pulse.step, why, code))})

    def close(self) -> None:
        """The run is over; no rank misses rank 0 from here on."""
        with self._lock:
            self._closed = True
            self._tell({"bye": True})

    def _serve(self) -> None:
        acknowledged = looked = time.monotonic()
        while not self._closed:
            events = self._selector.select(_TICK)
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                if now - looked > _PAUSE:
                    for seen in self._seen.values():
                        seen.heard_at += now - looked
                        seen.progress_at += now - looked
                looked = now
                fault = None
                for key, _ in events:
                    if key.fileobj is self._server:
                        self._accept()
                    else:
                        fault = self._read(key.fileobj, now) or fault  # type: ignore[arg-type]
                self._look_at_own(now)
                fault = fault or self._first_fault(now)
                if now - acknowledged >= BEAT_SECONDS:
                    acknowledged = now
                    self._tell({"alive": True})
                if fault is not None:
                    self._closed = True
                    self._tell({"fault": asdict(fault)})
            if fault is not None:
                end_culprit(fault, [seen.place for seen in self._seen.values()], self._seen[0].place)
                self._on_fault(fault)

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.settimeout(BEAT_SECONDS)
        self._unread[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket, now: float) -> Fault | None:
        data = _received(connection)
        seen = next((s for s in self._seen.values() if s.connection is connection), None)
        if not data:
            self._drop(connection)
            if seen is not None:
                seen.connection = None
                if not seen.said_bye:
                    text = f"{seen} died: its connection to rank 0 closed without a word (killed, out of memory, or crashed)"
                    return Fault("died", seen.place.rank, seen.pulse.step, text)
            return None
        *lines, self._unread[connection] = (self._unread[connection] + data).split(b"\n")
        for line in filter(None, lines):
            if seen is None:
                seen = self._welcomed(connection, line, now)
                if seen is None:
                    self._drop(connection)
                    return None
            seen.heard_at = now
            fault = self._take(seen, json.loads(line), now)
            if fault is not None:
                return fault
        return None

    def _welcomed(self, connection: socket.socket, line: bytes, now: float) -> Seen | None:
        """The rank that introduces itself; None for a stranger who came upon the port."""
        try:
            message = json.loads(line)
            known = message["token"] == self.token
        except (ValueError, TypeError, KeyError):
            return None
        if not known:
            return None
        place = Place(**message["place"])
        self._seen[place.rank] = Seen(place, Pulse(), now, now, connection=connection)
        return self._seen[place.rank]

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._unread[connection]
        connection.close()

    def _take(self, seen: Seen, message: dict[str, Any], now: float) -> Fault | None:
        if "pulse" in message:
            pulse = Pulse(**message["pulse"])
            if pulse.progress != seen.pulse.progress:
                seen.progress_at = now
            seen.pulse, seen.where, seen.waiting = pulse, message["where"], message["waiting"]
        if "raised" in message:
            return self._note_error(seen, message["raised"], message["of_collective"])
        if "left" in message:
            return Fault("left", seen.place.rank, seen.pulse.step, message["left"], message["code"])
        if "bye" in message:
            seen.said_bye = True
        return None

    def _note_error(self, seen: Seen, error: str, of_collective: bool) -> Fault | None:
        if of_collective:
            seen.lost_collective, seen.lost_at = error, time.monotonic()
            return None
        return Fault("raised", seen.place.rank, seen.pulse.step, f"{seen} raised {error}")

    def _look_at_own(self, now: float) -> None:
        own = self._seen[0]
        own.heard_at = now
        if own.pulse is self._pulse or own.pulse.progress != self._pulse.progress:
            own.progress_at = now
        own.pulse = Pulse(**asdict(self._pulse))
        own.where, own.waiting = main_thread_place()

    def _first_fault(self, now: float) -> Fault | None:
        if self._own_error is not None:
            return self._own_error
        everyone = list(self._seen.values())
        present = [seen for seen in everyone if not seen.said_bye]
        for seen in present:
            if now - seen.heard_at > self.silence:
                text = f"{seen} has been silent for {now - seen.heard_at:.0f} s: its host is dead, its link is cut, or its process has stopped"
                return Fault("silent", seen.place.rank, seen.pulse.step, text)
        broken = [seen for seen in everyone if seen.lost_collective is not None and now - seen.lost_at > GRACE_SECONDS]
        if broken:
            gone = [seen for seen in everyone if seen.said_bye]
            first = gone[0] if gone else broken[0]
            seen_text = (
                "left before the others"
                if gone
                else f"lost a connection to another rank, though all answer: {first.lost_collective}"
            )
            return Fault("died", first.place.rank, first.pulse.step, f"{first} {seen_text}")
        if not self._roster_sent and len(self._seen) == self._ranks:
            self._roster_sent = True
            self._tell({"roster": [asdict(self._seen[rank].place) for rank in sorted(self._seen)]})
        return self._judge(present, now)

    def _tell(self, message: dict[str, Any]) -> None:
        for seen in self._seen.values():
            if seen.connection is not None:
                with contextlib.suppress(OSError):  # its silence or its end is noted where it is read
                    seen.connection.sendall(_line(message))


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
            ready = selector.select(_TICK)
            now = time.monotonic()
            if now - looked > _PAUSE:
                heard += now - looked
            looked = now
            if ready:
                data = _received(self._connection)
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
            self._connection.sendall(_line(message))


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


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except TimeoutError:
        return b"\n"
    except OSError:
        return b""
