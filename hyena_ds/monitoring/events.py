"""TensorBoard's event files, written as the scalars come.

    [("train/loss", 1.31), ...], step --> events, framed as TensorBoard's own writer does --> one append to the newest file

torch's SummaryWriter writes in a thread of its own: what goes wrong there is a traceback on the terminal, and is heard of
rows later, by whoever calls next. Here a write has succeeded when it returns.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from hyena_ds.files.growing import GrowingFile
from hyena_ds.monitoring.scalars import Scalar

_NUMBERS = count()
"""Numbers the files of this process: two may begin in one second."""


class Events:
    """The event files of a run that continues after `step`; TensorBoard drops later ones of files that were there before."""

    def __init__(self, directory: Path, step: int):
        self._directory, self._step = directory, step
        self._file: GrowingFile | None = None

    def write(self, scalars: Sequence[Scalar], step: int) -> None:
        """Append them; a new file takes the place of one that is gone. Raises OSError."""
        now = datetime.now(UTC).timestamp()
        events = [
            Event(wall_time=now, step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
            for name, value in scalars
        ]
        file = self._file
        if file is None or not file.file.exists():
            self.close()
            self._directory.mkdir(parents=True, exist_ok=True)
            events = [*self._first(now), *events]
            name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
            file = GrowingFile(self._directory / name)
        self._file = None  # after an error nothing is known of its end: the next events go into another one
        file.append(framed(events))
        self._file, self._step = file, 0

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _first(self, now: float) -> list[Event]:
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if self._step:
            log = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self._step + 1, session_log=log))
        return events


def framed(events: Sequence[Event]) -> bytes:
    """Records with their checksums. TensorBoard's writer imports a stand-in for TensorFlow, and boto3 where it is installed."""
    return b"".join(map(_record, (event.SerializeToString() for event in events)))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc32c(length) + data + _masked_crc32c(data)


def _masked_crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc32c_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(map(_crc32c_of_byte, range(256)))
