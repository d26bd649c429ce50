"""TensorBoard's event files, written as the scalars come.

    [("train/loss", 1.31), ...], step --> events, framed by TensorBoard's own writer --> one append to the newest file

torch's SummaryWriter writes in a thread of its own: what goes wrong there is a traceback on the terminal, and is heard of
rows later, by whoever calls next. Here a write has succeeded when it returns.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

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
        file.append(_framed(events))
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


def _framed(events: Sequence[Event]) -> bytes:
    """Records with their checksums."""
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
