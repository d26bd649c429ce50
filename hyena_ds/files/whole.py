"""Files and directories that are complete or do not exist, also after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def aside(path: Path, own: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name at the end of the block, and goes if the block fails.

    What an earlier process has left there is removed first. With `own` the path is this process's alone, for files that
    several processes may write at once. Where `path` is a link, the link is replaced, and what it points to stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if own else f".{path.name}.partial")
    remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        remove(partial)


def write_whole(path: Path, content: str | bytes, own: bool = False) -> None:
    """Write a text (as UTF-8) or bytes to the disk, aside, then renamed. Raises OSError."""
    with aside(path, own) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        to_disk(file)


def to_disk(file: IO[Any]) -> None:
    """Return once what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Return once the names in a directory are on the disk: without it they do not survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove whatever has this name; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
