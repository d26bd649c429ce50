"""Files that are complete or do not exist, also after a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def aside(path: Path, own: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name at the end of the block, and goes if the block fails.

    With `own` it is this process's alone, for files that several processes may write at once.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if own else f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, own: bool = False) -> None:
    """Write a text (as UTF-8) or bytes to the disk, aside, then renamed. Raises OSError."""
    with aside(path, own) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        to_disk(file)


def to_disk(file: IO[Any]) -> None:
    """Return once what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())
