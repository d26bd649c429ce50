"""Rank 0's side of the heartbeat: hears all ranks, judges, and tells all of them the first cause of a failure.

A connection that closes without a farewell is a rank that died; silence is a host that is dead, a link that is cut or a
process that has stopped. An error out of a collective is a consequence, whose cause is waited for. Whether a rank that
answers is stuck, is the judgement of who makes the monitor.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hyena_ds.parallel.heartbeat import (
    BEAT_SECONDS,
    PAUSE,
    TICK,
    Fault,
    Place,
    Pulse,
    end_culprit,
    line,
    main_thread_place,
    received,
)

GRACE_SECONDS = 5.0
"""A broken collective is a consequence: for so long the monitor waits for its cause."""


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

    @property
    def last_heard(self) -> str:
        """Of a rank that says nothing any more; it may have come a second further."""
        return f"rank {self.place.rank} on {self.place.host} (process {self.place.pid}, last heard of in {self.pulse})"


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
        self._server = _server(address, ranks)
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

    def beat(self) -> None:
        """Rank 0's own pulse needs no sending."""

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
            events = self._selector.select(TICK)
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                if now - looked > PAUSE:
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
        data = received(connection)
        seen = next((s for s in self._seen.values() if s.connection is connection), None)
        if not data:
            self._drop(connection)
            if seen is not None:
                seen.connection = None
                if not seen.said_bye:
                    why = f"{seen.last_heard} died: its connection to rank 0 closed without a word (killed, out of memory, or crashed)"
                    return Fault("died", seen.place.rank, seen.pulse.step, why)
            return None
        *lines, self._unread[connection] = (self._unread[connection] + data).split(b"\n")
        for text in filter(None, lines):
            if seen is None:
                seen = self._welcomed(connection, text, now)
                if seen is None:
                    self._drop(connection)
                    return None
            seen.heard_at = now
            fault = self._take(seen, json.loads(text), now)
            if fault is not None:
                return fault
        return None

    def _welcomed(self, connection: socket.socket, text: bytes, now: float) -> Seen | None:
        """The rank that introduces itself; None for a stranger who came upon the port."""
        try:
            message = json.loads(text)
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
        return Fault("raised", seen.place.rank, seen.pulse.step, f"{seen} {error}")

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
                text = f"{seen.last_heard} has been silent for {now - seen.heard_at:.0f} s: its host is dead, its link is cut, or its process has stopped"
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
                    seen.connection.sendall(line(message))


def _server(address: str, ranks: int) -> socket.socket:
    """Listens on the one address that ranks come to, where this machine can tell which it is."""
    try:
        server = socket.create_server((address, 0), backlog=ranks)
    except OSError:  # the name that others know may be none of this machine's addresses
        return socket.create_server(("", 0), backlog=ranks)
    if server.getsockname()[0].startswith("127.") and not address.startswith(("127.", "localhost")):
        # A host's own name is often 127.0.1.1 there, and a proper address everywhere else.
        server.close()
        return socket.create_server(("", 0), backlog=ranks)
    return server
