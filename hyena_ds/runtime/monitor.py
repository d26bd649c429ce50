"""Rank 0's side of the heartbeat: hears all ranks, judges, and tells all of them the first cause of a failure.

A connection that closes without a farewell is a rank that died; silence is a host that is dead, a link that is cut or a
process that has stopped. An error out of a collective is a consequence, whose cause is waited for. Whether a rank that
answers is stuck, is the judgement of who makes the monitor.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import selectors
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hyena_ds.parallel.listening import listen
from hyena_ds.runtime.door import INTRODUCTION_BYTES, LOOK_SECONDS, Door
from hyena_ds.runtime.heartbeat import BEAT_SECONDS, TICK, Fault, OnFault, Place, Pulse, Side
from hyena_ds.runtime.wire import LINE_BYTES, TEXT_LENGTH, Wire, parsed, record, text, truth, whole

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
    """Whether that is inside a collective, or its device stands in one."""
    wire: Wire | None = None
    unreadable: int = 0
    """Messages of it that could not be read."""
    said_bye: bool = False
    lost_collective: str | None = None
    """The error with which one of its collectives broke."""
    lost_at: float = 0.0

    def __str__(self) -> str:
        return self.place.named(f", {self.pulse}")

    @property
    def last_heard(self) -> str:
        """A rank that says nothing any more; it may have come a second further."""
        return self.place.named(f", last heard of in {self.pulse}")

    def fault(self, kind: str, why: str, code: int = Fault.code) -> Fault:
        """A failure whose cause is this rank."""
        return Fault(kind, self.place.rank, self.pulse.step, why, code)


Judge = Callable[[list[Seen], float], Fault | None]


class Monitor(Side):
    """Rank 0's side: hears all ranks, judges, and tells all of them. `on_fault` ends the process."""

    name = "monitor"

    def __init__(
        self, place: Place, ranks: int, silence: float, pulse: Pulse, judge: Judge, on_fault: OnFault, address: str = ""
    ):
        super().__init__(place, silence, pulse, on_fault)
        self._ranks, self._judge = ranks, judge
        self.token = secrets.token_hex(16)
        server = listen(address)
        self.port = int(server.getsockname()[1])
        self._door = Door(server)
        now = time.monotonic()
        self._known[place.rank] = place
        self._seen = {place.rank: Seen(place, pulse, now, now)}
        self._selector = selectors.DefaultSelector()
        self._own_error: Fault | None = None
        self._thread.start()

    def beat(self) -> None:
        """Rank 0's own pulse needs no sending."""

    def raised(self, error: str, of_collective: bool) -> None:
        """Note an error on rank 0 itself, and whether it is that of a collective."""
        with self._lock:
            self._own_error = self._note_error(self._seen[0], text(error), of_collective)

    def left(self, why: str, code: int) -> None:
        """Rank 0 leaves at once: so do all. Does not wait for them."""
        with self._lock:
            self._closed = True
            self._tell({"fault": asdict(Fault("left", 0, self._pulse.step, why, code))})

    def _watch(self) -> Fault | None:
        with contextlib.closing(self._door):
            return self._hear_and_judge()

    def _hear_and_judge(self) -> Fault | None:
        acknowledged = time.monotonic()
        while True:
            events = self._selector.select(LOOK_SECONDS if self._door.is_open else TICK)
            with self._lock:
                if self._closed:
                    return None
                now = time.monotonic()
                if slept := self._slept(now):
                    for seen in self._seen.values():
                        seen.heard_at += slept
                        seen.progress_at += slept
                faults = [self._read(key.data, now) for key, _ in events] + self._let_in(now)
                self._look_at_own(now)
                fault = next(filter(None, faults), None) or self._first_fault(now)
                if fault is not None:
                    return fault
                for wire in self._wires:
                    wire.flush()
                if now - acknowledged >= BEAT_SECONDS:
                    acknowledged = now
                    self._tell({"alive": True}, only_if_read=True)

    def _let_in(self, now: float) -> list[Fault | None]:
        """Hear who calls at the door; with the last rank it closes for good."""
        if not self._door.is_open:
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
            self._door.close()
            places = [asdict(place) for place in self.roster]
            for first in range(0, len(places), _PLACES_A_LINE):
                self._tell({"roster": places[first : first + _PLACES_A_LINE]})
        return faults

    def _welcomed(self, wire: Wire, introduction: bytes, now: float) -> Seen | None:
        """The rank that introduces itself; None for a stranger who came upon the port."""
        try:
            message = parsed(introduction, INTRODUCTION_BYTES)
            if not hmac.compare_digest(text(message.get("token")).encode(), self.token.encode()):
                return None
            place = record(Place, message.get("place"))
        except ValueError:
            return None
        if place.rank in self._seen or place.rank >= self._ranks:
            return None
        wire.longest = LINE_BYTES
        self._known[place.rank] = place
        self._wires.append(wire)
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
            self._wires.remove(seen.wire)
            seen.wire.close()
        if seen.said_bye:
            return None
        why = f"{seen.last_heard} died: its connection to rank 0 closed without a word (killed, out of memory, or crashed)"
        return seen.fault("died", why)

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
            return seen.fault("left", text(message["left"]), whole(message.get("code"), 0, 255))
        if "fault" in message:
            return seen.fault("watch", record(Fault, message["fault"]).text)
        if "bye" in message:
            seen.said_bye = True
        return None

    def _note_error(self, seen: Seen, error: str, of_collective: bool) -> Fault | None:
        if of_collective:
            seen.lost_collective, seen.lost_at = error, time.monotonic()
            return None
        return seen.fault("raised", f"{seen} {error}"[:TEXT_LENGTH])

    def _look_at_own(self, now: float) -> None:
        own = self._seen[0]
        own.heard_at = now
        if own.pulse is self._pulse or own.pulse.progress != self._pulse.progress:
            own.progress_at = now
        own.pulse = Pulse(**asdict(self._pulse))
        own.where, own.waiting = self.place_now()

    def _first_fault(self, now: float) -> Fault | None:
        if self._own_error is not None:
            return self._own_error
        everyone = list(self._seen.values())
        present = [seen for seen in everyone if not seen.said_bye]
        for seen in present:
            if silent := self._is_silent(seen.heard_at, now):
                why = f"{seen.last_heard} {silent}"
                if seen.unreadable:
                    why += f"; messages of it that could not be read: {seen.unreadable}"
                return seen.fault("silent", why)
        broken = [seen for seen in everyone if seen.lost_collective is not None and now - seen.lost_at > GRACE_SECONDS]
        if not broken:
            return self._judge(present, now)
        if gone := [seen for seen in everyone if seen.said_bye]:
            return gone[0].fault("died", f"{gone[0]} left before the others")
        first = broken[0]
        why = f"lost a connection to another rank, though all answer: {first.lost_collective}"
        return first.fault("died", f"{first} {why}")
