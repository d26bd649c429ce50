"""Rank 0's side of the heartbeat: hears all ranks, judges, and tells all of them the first cause of a failure.

A connection that closes without a farewell is a rank that died; silence is a host that is dead, a link that is cut or a
process that has stopped. An error out of a collective is a consequence, whose cause is waited for. Whether a rank that
answers is stuck, is the judgement of who makes the monitor.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hyena_ds.parallel.listening import listen
from hyena_ds.runtime.door import INTRODUCTION_BYTES, LOOK_SECONDS, Door
from hyena_ds.runtime.heartbeat import (
    BEAT_SECONDS,
    LAST_SECONDS,
    PAUSE,
    TICK,
    Fault,
    Place,
    Pulse,
    broken_watch,
    end_culprit,
    fault_of,
    main_thread_place,
    place_of,
)
from hyena_ds.runtime.wire import LINE_BYTES, TEXT_LENGTH, Wire, drain, parsed, record, text, truth, whole

_PLACES_A_LINE = 16
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
    wire: Wire | None = None
    unreadable: int = 0
    """Messages of it that could not be read."""
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
        self.token = secrets.token_hex(16)
        server = listen(address)
        self.port = int(server.getsockname()[1])
        self._door: Door | None = Door(server)
        now = time.monotonic()
        self._seen = {place.rank: Seen(place, pulse, now, now)}
        self._selector = selectors.DefaultSelector()
        self._own_error: Fault | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="monitor")
        self._thread.start()

    def beat(self) -> None:
        """Rank 0's own pulse needs no sending."""

    def raised(self, error: str, of_collective: bool) -> None:
        with self._lock:
            self._own_error = self._note_error(self._seen[0], text(error), of_collective)

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
            drain(self._wires(), LAST_SECONDS)

    def _serve(self) -> None:
        try:
            fault = self._watch()
        except Exception as error:
            fault = broken_watch("monitor", self._seen[0].place, self._pulse.step, error)
        self._close_door()
        if fault is None:
            return
        try:
            with self._lock:
                self._closed = True
                self._tell({"fault": asdict(fault)})
                drain(self._wires(), LAST_SECONDS)
            end_culprit(fault, [seen.place for seen in self._seen.values()], self._seen[0].place)
        finally:
            self._on_fault(fault)

    def _watch(self) -> Fault | None:
        """Hear and judge until the run is over (None) or has a fault."""
        acknowledged = looked = time.monotonic()
        while True:
            events = self._selector.select(TICK if self._door is None else LOOK_SECONDS)
            with self._lock:
                if self._closed:
                    return None
                now = time.monotonic()
                if now - looked > PAUSE:
                    for seen in self._seen.values():
                        seen.heard_at += now - looked
                        seen.progress_at += now - looked
                looked = now
                faults = [self._read(key.data, now) for key, _ in events] + self._let_in(now)
                self._look_at_own(now)
                fault = next(filter(None, faults), None) or self._first_fault(now)
                if fault is not None:
                    return fault
                for wire in self._wires():
                    wire.flush()
                if now - acknowledged >= BEAT_SECONDS:
                    acknowledged = now
                    self._tell({"alive": True}, only_if_read=True)

    def _let_in(self, now: float) -> list[Fault | None]:
        """Hear who calls at the door; with the last rank it closes for good."""
        if self._door is None:
            return []
        faults = []
        missing = self._ranks - len(self._seen)
        for wire, (introduction, *lines) in self._door.look(now, missing) if missing else []:
            seen = self._welcomed(wire, introduction, now)
            if seen is None:
                wire.close()
            else:
                faults.append(self._hear(seen, lines, now))
        if len(self._seen) == self._ranks:
            self._close_door()
            places = [asdict(self._seen[rank].place) for rank in sorted(self._seen)]
            for first in range(0, len(places), _PLACES_A_LINE):
                self._tell({"roster": places[first : first + _PLACES_A_LINE]})
        return faults

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def _welcomed(self, wire: Wire, introduction: bytes, now: float) -> Seen | None:
        """The rank that introduces itself; None for a stranger who came upon the port."""
        try:
            message = parsed(introduction, INTRODUCTION_BYTES)
            if not hmac.compare_digest(text(message.get("token")).encode(), self.token.encode()):
                return None
            place = place_of(message.get("place"))
        except ValueError:
            return None
        if place.rank in self._seen or place.rank >= self._ranks:
            return None
        wire.longest = LINE_BYTES
        seen = self._seen[place.rank] = Seen(place, Pulse(), now, now, wire=wire)
        self._selector.register(wire.fileno(), selectors.EVENT_READ, seen)
        wire.send({"alive": True})
        return seen

    def _read(self, seen: Seen, now: float) -> Fault | None:
        assert seen.wire is not None
        try:
            return self._hear(seen, seen.wire.lines(), now)
        except EOFError:
            self._selector.unregister(seen.wire.fileno())
            seen.wire.close()
            seen.wire = None
        if seen.said_bye:
            return None
        why = f"{seen.last_heard} died: its connection to rank 0 closed without a word (killed, out of memory, or crashed)"
        return Fault("died", seen.place.rank, seen.pulse.step, why)

    def _hear(self, seen: Seen, lines: list[bytes], now: float) -> Fault | None:
        for line in lines:
            try:
                fault = self._take(seen, parsed(line), now)
            except ValueError:
                seen.unreadable += 1
                continue
            seen.heard_at = now
            if fault is not None:
                return fault
        return None

    def _take(self, seen: Seen, message: dict[str, Any], now: float) -> Fault | None:
        """Note what a rank says, and the fault that follows from it. Raises ValueError where it cannot be read."""
        if "pulse" in message:
            pulse, where, waiting = record(Pulse, message["pulse"]), text(message.get("where")), message.get("waiting")
            seen.where, seen.waiting = where, truth(waiting)
            if pulse.progress != seen.pulse.progress:
                seen.progress_at = now
            seen.pulse = pulse
        if "raised" in message:
            return self._note_error(seen, text(message["raised"]), truth(message.get("of_collective")))
        if "left" in message:
            code = whole(message.get("code"), 0, 255)
            return Fault("left", seen.place.rank, seen.pulse.step, text(message["left"]), code)
        if "fault" in message:
            fault = fault_of(message["fault"])
            return Fault("watch", seen.place.rank, seen.pulse.step, fault.text)
        if "bye" in message:
            seen.said_bye = True
        return None

    def _note_error(self, seen: Seen, error: str, of_collective: bool) -> Fault | None:
        if of_collective:
            seen.lost_collective, seen.lost_at = error, time.monotonic()
            return None
        return Fault("raised", seen.place.rank, seen.pulse.step, f"{seen} {error}"[:TEXT_LENGTH])

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
                why = f"{seen.last_heard} has been silent for {now - seen.heard_at:.0f} s: its host is dead, its link is cut, or its process has stopped"
                if seen.unreadable:
                    why += f"; messages of it that could not be read: {seen.unreadable}"
                return Fault("silent", seen.place.rank, seen.pulse.step, why)
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
        return self._judge(present, now)

    def _tell(self, message: dict[str, Any], only_if_read: bool = False) -> None:
        """To every rank, without waiting for one that does not read; its silence or its end is noted where it is read."""
        for wire in self._wires():
            if not (only_if_read and wire.owes):
                wire.send(message)

    def _wires(self) -> list[Wire]:
        return [seen.wire for seen in self._seen.values() if seen.wire is not None]
