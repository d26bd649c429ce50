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
from collections.abc import Sequence
from pathlib import Path

from hyena_ds.config.afar import user_cache
from hyena_ds.data.shards import Shard, verify_shard
from hyena_ds.errors import UserError

_YOUNG_NS = 2_000_000_000
"""A file that changed so shortly before it was read could change again under the same times."""

_UNUSED_SECONDS = 90 * 86400
"""After which a directory is forgotten."""

State = tuple[int, ...]


def verify_shards(directory: str, shards: Sequence[Shard], share: int) -> None:
    """Raise UserError unless each has the checksum of the index; `share` is this process's number among those of the node."""
    where = Path(directory).resolve()
    memory = user_cache() / "checksums"
    name = hashlib.sha256(f"{socket.gethostname()}\0{where}".encode()).hexdigest()[:24]
    known = _remembered(memory, name)
    found: dict[str, list[int | str]] = {}
    try:
        for shard in shards:
            before = _state(where / shard.file)
            if before is None or known.get(shard.file) != [*before, shard.sha256]:
                _verify(directory, shard)
            if before is not None and before == _state(where / shard.file) and _is_settled(before):
                found[shard.file] = [*before, shard.sha256]
    finally:
        _remember(memory, f"{name}.{share}.json", found)


def _verify(directory: str, shard: Shard) -> None:
    try:
        verify_shard(directory, shard)
    except OSError as error:
        raise UserError(
            f"{directory}/{shard.file}: the shard cannot be read ({error.strerror}); make it readable, or copy it again"
        ) from None


def _state(path: Path) -> State | None:
    """What changes when a file does; the time of change of its inode (ctime) cannot be set by anybody."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _is_settled(state: State) -> bool:
    return time.time_ns() - max(state[-2:]) > _YOUNG_NS


def _remembered(memory: Path, name: str) -> dict[str, object]:
    known: dict[str, object] = {}
    for file in memory.glob(f"{name}.*.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(file.read_text(encoding="utf-8"))
            known.update(found if isinstance(found, dict) else {})
    return known


def _remember(memory: Path, name: str, found: dict[str, list[int | str]]) -> None:
    partial = memory / f".{name}.{os.getpid()}.partial"
    with contextlib.suppress(OSError):  # nothing depends on it
        if not found and not (memory / name).exists():
            return
        memory.mkdir(parents=True, exist_ok=True)
        for file in memory.iterdir():
            if time.time() - file.stat().st_mtime > _UNUSED_SECONDS:
                file.unlink()
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(memory / name)
