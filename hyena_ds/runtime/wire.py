"""A heartbeat's connection: a JSON object a line both ways, that nobody waits for, and whose content nobody believes.

    socket --at most 64 KiB a look--> lines of bounded length --parsed()--> messages --text(), whole(), record()--> values
    message --unsent bytes--as much as the socket takes--> socket

Whatever the other side sends, reading costs a bounded time and memory, and raises ValueError or EOFError, nothing else.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

LINE_BYTES = 1 << 16
"""Longest line that a rank and rank 0 send each other, once they know each other."""
TEXT_LENGTH = 1000
"""Letters of a text that are read."""

_PIECE_BYTES = 1 << 16
_LARGEST = 1 << 53
_Record = TypeVar("_Record")


class Wire:
    """One connection. Not for several threads at once."""

    def __init__(self, connection: socket.socket, longest: int = LINE_BYTES):
        connection.setblocking(False)
        self.longest = longest
        """Bytes of a line that are read."""
        self._connection = connection
        self._unread = bytearray()
        self._unsent = bytearray()

    @property
    def owes(self) -> bool:
        """Whether the other side has not taken all that was sent."""
        return bool(self._unsent)

    @property
    def overfull(self) -> bool:
        """Whether a line has begun that is too long."""
        return len(self._unread) > self.longest

    def fileno(self) -> int:
        """The connection's file descriptor, for a selector."""
        return self._connection.fileno()

    def lines(self) -> list[bytes]:
        """The lines that have ended since the last look; one that was too long is longer than `longest`, and cut.

        Reads one piece, without waiting. Raises EOFError where the connection has ended.
        """
        try:
            piece = self._connection.recv(min(_PIECE_BYTES, self.longest + 1))
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            piece = b""
        if not piece:
            raise EOFError
        *ends, rest = piece.split(b"\n")
        found = []
        for end in ends:
            self._keep(end)
            found.append(bytes(self._unread))
            self._unread.clear()
        self._keep(rest)
        return [line for line in found if line]

    def send(self, message: dict[str, Any]) -> None:
        """Without waiting: what the other side does not take is sent with the next messages, or by `flush`."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it now."""
        while self._unsent:
            try:
                sent = self._connection.send(self._unsent[:_PIECE_BYTES])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # who reads notes the end of the connection
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _keep(self, part: bytes) -> None:
        self._unread += part[: self.longest + 1 - len(self._unread)]


def drain(wires: Sequence[Wire], seconds: float = 1.0) -> None:
    """Wait until the other sides have taken everything, the last words too, for at most so long together."""
    deadline = time.monotonic() + seconds
    while (owing := [wire for wire in wires if wire.owes]) and time.monotonic() < deadline:
        time.sleep(0.02)
        for wire in owing:
            wire.flush()


def parsed(line: bytes, longest: int = LINE_BYTES) -> dict[str, Any]:
    """The message of a line. Raises ValueError, whatever the line holds."""
    if len(line) > longest:
        raise ValueError("a line that is too long")
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("a line that is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError("a line that is no message")
    return message


def text(found: Any) -> str:
    """A text that can be shown: control characters and halves of letters are replaced, and what is too long is cut."""
    if not isinstance(found, str):
        raise ValueError("no text")
    return "".join(letter if letter.isprintable() else "?" for letter in found[:TEXT_LENGTH])


def whole(found: Any, least: int = -_LARGEST, most: int = _LARGEST) -> int:
    """A whole number within the bounds, or ValueError."""
    if type(found) is not int or not least <= found <= most:
        raise ValueError("no number, or one out of range")
    return found


def number(found: Any) -> float:
    """A finite number, or ValueError."""
    if type(found) is int:
        return float(whole(found))
    if type(found) is not float or not math.isfinite(found):
        raise ValueError("no finite number")
    return found


def truth(found: Any) -> bool:
    """True or False, or ValueError."""
    if type(found) is not bool:
        raise ValueError("neither true nor false")
    return found


_READERS: dict[str, Callable[[Any], Any]] = {"str": text, "int": whole, "float": number, "bool": truth}


def record(kind: type[_Record], found: Any) -> _Record:
    """A dataclass of texts and numbers, as `asdict` made it; ValueError where a field is missing, unknown or another type."""
    names = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(found, dict) or found.keys() != names.keys():
        raise ValueError(f"no {kind.__name__}")
    return kind(**{name: _READERS[annotation](found[name]) for name, annotation in names.items()})
