"""Files that grow by whole pieces: what cannot be written leaves nothing of itself behind. Takes no torch."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


class GrowingFile:
    """A file that is appended to, and made again where somebody has removed or renamed it.

    Where it ends in the middle of a line, as a killed process may leave it, the next piece begins on a line of its own.
    """

    def __init__(self, file: Path):
        """Opened by the first piece."""
        self.file = file
        self._descriptor: int | None = None
        self._torn = False

    def append(self, piece: bytes, durable: bool = False) -> None:
        """Write all of `piece`, on request to the disk. Raises OSError that names the file, which is then as before."""
        try:
            self._write(piece, durable)
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, str(self.file)) from None

    def close(self) -> None:
        """Close it; another piece opens it again."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # nothing is kept back that could still be lost
                os.close(self._descriptor)
            self._descriptor = None

    def _write(self, piece: bytes, durable: bool) -> None:
        if self._descriptor is None or not self._is_still_there(self._descriptor):
            self.close()
            # A pipe that nobody reads would hold the training up.
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
            self._torn = self._is_torn(self._descriptor)
        descriptor = self._descriptor
        found = os.fstat(descriptor)
        rest = memoryview(b"\n" + piece if self._torn else piece)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if durable:
                os.fsync(descriptor)
        except OSError:
            if stat.S_ISREG(found.st_mode):
                with contextlib.suppress(OSError):  # the next piece begins on a line of its own
                    os.ftruncate(descriptor, found.st_size)
            raise
        self._torn = False

    def _is_still_there(self, descriptor: int) -> bool:
        """Whether the file that is open is the one of that name."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False

    @staticmethod
    def _is_torn(descriptor: int) -> bool:
        """Whether a file ends in the middle of a line."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            return False
        return os.pread(descriptor, 1, found.st_size - 1) != b"\n"


def append_line(file: Path, line: str) -> None:
    """Append `line` to a file of lines, and force it to the disk. Raises OSError that names the file."""
    growing = GrowingFile(file)
    try:
        growing.append(f"{line}\n".encode(), durable=True)
    finally:
        growing.close()
