"""Writes files so that they are complete or do not exist, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is complete or does not exist, also after a power cut."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        to_disk(file)
    os.replace(unfinished, path)


def to_disk(file: IO[Any]) -> None:
    """Return once what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())
