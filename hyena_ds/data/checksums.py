"""The SHA-256 of shards in directories, remembered so that a run that starts again reads none of them for it.

    shard --same file, size and times as when it was hashed?--> right    else --SHA-256--> right, and remembered

A node's memory is in the user's cache directory: CHECKSUMS/HASH OF THE DIRECTORY.SHARE.json, which only the process of that
share writes. Only what was right is remembered, so a lost or damaged memory costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyena_ds.config.remote import user_cache
from hyena_ds.data.shards import Shard, damaged, sha256_of
from hyena_ds.errors import UserError
from hyena_ds.files.whole import write_whole

_YOUNG_NS = 2_000_000_000
"""A file that changed so shortly before it was read could change again under the same times."""

_UNUSED_SECONDS = 90 * 86400
"""After which a directory is forgotten."""


def verify_shards(directory: str, shards: Sequence[Shard], share: int) -> None:
    """Raise UserError unless each has the checksum of the index; `share` is this process's number among those of the node."""
    with Checksums(Path(directory), share) as checksums:
        for shard in shards:
            try:
                agrees = checksums.agrees(checksums.directory / shard.file, shard.sha256)
            except OSError as error:
                raise UserError(
                    f"{directory}/{shard.file}: the shard cannot be read ({error.strerror}); make it readable, or copy it again"
                ) from None
            if not agrees:
                raise damaged(directory, shard)


class Checksums:
    """What is remembered of the files of one directory."""

    def __init__(self, directory: Path, share: int, touched: bool = False):
        """With `touched`, the directory's files are touched as they are used, and their bytes have the time of their writing."""
        self.directory = directory.resolve()
        self._times = ("st_mtime_ns",) if touched else ("st_mtime_ns", "st_ctime_ns")
        try:
            self._memory = user_cache() / "checksums"
        except RuntimeError:  # nobody's home: nothing is remembered
            self._memory = Path(os.devnull) / "checksums"
        name = hashlib.sha256(f"{socket.gethostname()}\0{self.directory}".encode()).hexdigest()[:24]
        self._own = self._memory / f"{name}.{share}.json"
        self._known = [_read(file) for file in self._memory.glob(f"{name}.*.json")]
        self._found: dict[str, list[int | str]] = {}

    def __enter__(self) -> Checksums:
        return self

    def __exit__(self, *_: object) -> None:
        before = {name: entry for name, entry in _read(self._own).items() if (self.directory / name).exists()}
        if self._found:
            _write(self._own, before | self._found)

    def agrees(self, file: Path, sha256: str) -> bool:
        """Whether the file has this checksum, as it is remembered or else read. Raises OSError."""
        before = self._state(file)
        known = before is not None and any(known.get(file.name) == [*before, sha256] for known in self._known)
        if not known and sha256_of(file) != sha256:
            return False
        if before is not None and before == self._state(file) and time.time_ns() - max(before[3:]) > _YOUNG_NS:
            self._found[file.name] = [*before, sha256]
        return True

    def _state(self, file: Path) -> tuple[int, ...] | None:
        """What changes when a file does. The time of change of its inode (ctime) cannot be set by anybody."""
        try:
            state = file.stat()
        except OSError:
            return None
        return state.st_dev, state.st_ino, state.st_size, *(getattr(state, name) for name in self._times)


def _read(file: Path) -> dict[str, object]:
    """What a file remembers; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _write(file: Path, entries: Mapping[str, object]) -> None:
    """Nothing depends on it, so a disk that takes nothing is no error."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        for other in file.parent.iterdir():
            if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                other.unlink()
        write_whole(file, json.dumps(entries), own=True)
