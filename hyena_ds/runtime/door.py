"""Rank 0's open port, until every rank has come through it, and the callers who have not said yet who they are.

    port --accept--> callers --first line--> the monitor, which knows the token, or an end

Anybody may call. A caller has 5 seconds and 4 KiB for its first line, and only a few more than the missing ranks may
stand here: the one that has waited longest makes room for the next. The monitor looks here at fixed times, and a look is
bounded, so callers take no more of its time the more they are. A rank that was pushed out calls again (Member).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from hyena_ds.runtime.wire import Wire

LOOK_SECONDS = 0.05
INTRODUCTION_BYTES = 4096
INTRODUCTION_SECONDS = 5.0
SPARE = 8
"""Callers beyond the missing ranks that may wait."""

_ACCEPTED_A_LOOK = 16
"""And as many as ranks are missing."""
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class Door:
    """The listening socket `server`, and who waits there."""

    def __init__(self, server: socket.socket):
        server.setblocking(False)
        self._server = server
        self.is_open = True
        self._waiting: dict[Wire, float] = {}
        """Callers and when they came, the first first."""

    def look(self, now: float, missing: int) -> list[tuple[Wire, list[bytes]]]:
        """The callers that have sent a first line, and their lines. `missing` ranks are expected."""
        came = self._introductions(self._waiting, now)
        for _ in range(missing + _ACCEPTED_A_LOOK):
            try:
                connection, _ = self._server.accept()
            except ConnectionAbortedError:
                continue  # gone before its turn
            except OSError as error:
                if error.errno in _TOO_MANY_FILES and self._waiting:
                    self._end(next(iter(self._waiting)))
                    continue
                break  # nobody calls, or none can be let in before the next look
            caller = Wire(connection, INTRODUCTION_BYTES)
            self._waiting[caller] = now
            came += self._introductions([caller], now)  # a rank has mostly spoken by now, however many call after it
            while len(self._waiting) > missing + SPARE:
                self._end(next(iter(self._waiting)))
        return came

    def close(self) -> None:
        """Nobody is expected any more."""
        self.is_open = False
        self._server.close()
        for caller in list(self._waiting):
            self._end(caller)

    def _introductions(self, callers: Iterable[Wire], now: float) -> list[tuple[Wire, list[bytes]]]:
        """What callers have sent, once that is a line; one that is gone, takes too long or says too much is let go."""
        came = []
        for caller in list(callers):
            try:
                lines = caller.lines()
            except EOFError:
                self._end(caller)
                continue
            if lines:
                del self._waiting[caller]
                came.append((caller, lines))
            elif caller.overfull or now - self._waiting[caller] > INTRODUCTION_SECONDS:
                self._end(caller)
        return came

    def _end(self, caller: Wire) -> None:
        del self._waiting[caller]
        caller.close()
