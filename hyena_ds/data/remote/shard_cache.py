"""The shards from afar that a node keeps: fetched once for all its ranks, checked, within a bound.

    CACHE/SHA256.tar          a whole shard whose bytes were right when they arrived
    CACHE/SHA256.BYTES.part   one that is on its way, and counts as BYTES
    CACHE/SHA256.lock         held by the process that fetches it, and ends with it: another one then takes over
    CACHE/room.lock           held while somebody counts what is here and removes what was used least recently

Locks are the kernel's (flock): a process that dies leaves none behind. Whoever reads a shard holds a shared lock on the
tar itself, so nothing that is open is ever removed. Names are checksums: sources and runs share what is equal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.remote import CacheConfig
from hyena_ds.data.checksums import Checksums
from hyena_ds.data.remote.fetching import fetch_shard
from hyena_ds.data.remote.transfer import address_of, named
from hyena_ds.data.shards import Shard, read_fully
from hyena_ds.errors import LocalError
from hyena_ds.files.rows import read_text

_POLL = 0.05
_TAKES_OVER = 5.0
"""Seconds beyond patience that a process waits for another one's fetch, which has patience of its own."""
_EVICTED_AGAIN = 10
"""Times that a shard is fetched for one reading."""


class ShardCache:
    """The cache directory of this node, as one process uses it."""

    def __init__(self, config: CacheConfig):
        self.config = config
        self.path = config.path

    @contextmanager
    def opened(self, place: str, shard: Shard) -> Iterator[int]:
        """A file descriptor of the whole shard, fetched first if need be; nobody removes it meanwhile."""
        for _ in range(_EVICTED_AGAIN):
            with self._in_words(place, shard), self._whole(shard) as file:
                if file is not None:
                    yield file
                    return
            self.fetch(place, shard)
        raise LocalError(
            f"{self.path}: shard {shard.file} was removed {_EVICTED_AGAIN} times before it was read; "
            f"raise data.cache.gib (now {self.config.gib:g}): too many shards are in use at once"
        )

    def read_into(self, place: str, shard: Shard, ids: NDArray[np.uint8], offset: int) -> None:
        """Fill `ids` with a shard's bytes from `offset` on, fetching it first if it is not here.

        It is open only while it is read: what is not being read may make place for others.
        """
        with self.opened(place, shard) as file:
            try:
                read_fully(file, ids, offset)
            except OSError as error:
                raise LocalError(
                    f"{self.path}: the kept copy of {named(place, shard.file)} became "
                    f"unreadable ({error.strerror}); see to the disk, then start the same line again: the run continues"
                ) from None

    def has(self, shard: Shard) -> bool:
        """Whether the shard is here. It may be gone a moment later."""
        return _size(self._tar(shard)) == shard.bytes

    def fetch(self, place: str, shard: Shard, wait: bool = True, stopped: Event | None = None) -> None:
        """Make the shard be here. With `wait` false, a shard that another process fetches is left to it.

        Raises LocalError that names the shard, and Stopped (fetching.py) once `stopped` is set.
        """
        path, part = self.path / f"{shard.sha256}.lock", self._part(shard)
        with self._in_words(place, shard):
            self.path.mkdir(parents=True, exist_ok=True)
            told, size, grew = _changed(path), _size(part), time.monotonic()
            while True:
                with _locked(path) as lock:
                    if lock is not None:
                        # While this process waited, another one may have lost its patience: once is enough for a node.
                        failure = read_text(path)
                        if failure.startswith(_FAILED) and _changed(path) != told:
                            raise LocalError(failure.removeprefix(_FAILED))
                        return self._fetch_locked(place, shard, lock, stopped or Event())
                if not wait or self.has(shard):
                    return
                if _size(part) != size:
                    size, grew = _size(part), time.monotonic()
                if time.monotonic() - grew > self.config.patience + _TAKES_OVER:
                    raise LocalError(
                        f"{named(place, shard.file)}: process {read_text(path) or 'unknown'} of this node fetches this "
                        f"shard, and no byte came for {time.monotonic() - grew:.0f} s; end it, then start the same line again"
                    )
                time.sleep(_POLL)

    def remove_damaged(self, shards: list[Shard], share: int = 0) -> None:
        """Remove those of `shards` that are here with other bytes than the index says; they will be fetched again.

        `share` is this process's number among those of the node that share the shards.
        """
        with Checksums(self.path, share, touched=True) as checksums:
            for shard in shards:
                tar = self._tar(shard)
                with self._whole(shard) as file, contextlib.suppress(FileNotFoundError):
                    if file is not None and not checksums.agrees(tar, shard.sha256):
                        tar.unlink()

    def _tar(self, shard: Shard) -> Path:
        return self.path / f"{shard.sha256}.tar"

    @contextmanager
    def _whole(self, shard: Shard) -> Iterator[int | None]:
        """A block during which the shard is open under a shared lock; None in place of it where it has to be fetched."""
        path, file = self._tar(shard), None
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # waits only while somebody removes it
                file = stack.enter_context(_locked(path, os.O_RDONLY, fcntl.LOCK_SH))
            if file is not None:
                found = os.fstat(file)
                if found.st_nlink > 0 and found.st_size == shard.bytes:
                    with contextlib.suppress(PermissionError):
                        _touch(file)
                else:
                    if found.st_nlink > 0:
                        path.unlink(missing_ok=True)
                    file = None
            yield file

    def _fetch_locked(self, place: str, shard: Shard, lock: int, stopped: Event) -> None:
        if self.has(shard):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                _touch(self._tar(shard))  # somebody is about to use it
            return
        part = self._part(shard)
        _tell(lock, str(os.getpid()))
        try:
            self._make_room(shard, part)
            fetch_shard(address_of(place, shard.file), part, shard, self.config, stopped)
            part.replace(self._tar(shard))
            _tell(lock, "")
        except LocalError as error:
            _tell(lock, f"{_FAILED}{error}")  # what arrived stays, and the next attempt goes on from there
            raise
        except OSError:
            part.unlink(missing_ok=True)  # a full disk is not left full
            raise

    def _part(self, shard: Shard) -> Path:
        return self.path / f"{shard.sha256}.{shard.bytes}.part"

    def _make_room(self, shard: Shard, part: Path) -> None:
        """Remove what was used least recently until the shard fits, and claim its place."""
        began, path = time.monotonic(), self.path / "room.lock"
        if shard.bytes > self.config.bytes:
            raise LocalError(
                f"data.cache.gib: found {self.config.gib:g}, wanted at least {shard.bytes / 2**30:.3g} for shard "
                f"{shard.file} alone; raise it"
            )
        while True:
            with _locked(path) as room:
                if room is None:
                    problem = (
                        f"{path}: another process has held this lock for {time.monotonic() - began:.0f} s; end the process "
                        "that has it open, or name another data.cache.directory"
                    )
                else:
                    kept = self._kept(part)
                    used = sum(size for _, _, size in kept)
                    for _, other, size in sorted(kept):
                        if used + shard.bytes <= self.config.bytes:
                            break
                        if _remove(other):
                            used -= size
                    if used + shard.bytes <= self.config.bytes:
                        return part.touch()
                    problem = (
                        f"{self.path}: shard {shard.file} of {shard.bytes / 2**30:.3g} GiB does not fit beside "
                        f"{used / 2**30:.3g} GiB that are in use; raise data.cache.gib (now {self.config.gib:g})"
                    )
            if time.monotonic() - began > self.config.patience:
                raise LocalError(problem)
            time.sleep(_POLL)

    def _kept(self, part: Path) -> list[tuple[float, Path, int]]:
        """When it was last used, path and size of everything here but `part`; what is on its way has its later size."""
        found = []
        for entry in os.scandir(self.path):
            path = Path(entry.path)
            if path.suffix not in (".tar", ".part") or path == part:
                continue
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                claimed = path.stem.rpartition(".")[2] if path.suffix == ".part" else ""
                found.append(
                    (max(state.st_atime, state.st_mtime), path, int(claimed) if claimed.isdigit() else state.st_size)
                )
        return found

    @contextmanager
    def _in_words(self, place: str, shard: Shard) -> Iterator[None]:
        """What the cache's own disk does, in a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                cure = "its file system has no locks: name a directory of the node's own disk in data.cache.directory"
            else:
                cure = "make room, lower data.cache.gib, or name another data.cache.directory"
            raise LocalError(
                f"{error.filename or self.path}: cannot keep {named(place, shard.file)} "
                f"({error.strerror or error}); {cure}, then start the same line again"
            ) from None


_FAILED = "failed: "
"""Begins the text in the lock file of a shard that was given up."""


def _touch(tar: Path | int) -> None:
    """It was used now, which the clock of what was used least recently reads; its bytes are as old as they were."""
    os.utime(tar, ns=(time.time_ns(), os.stat(tar).st_mtime_ns))


@contextmanager
def _locked(
    path: Path, flags: int = os.O_RDWR | os.O_CREAT, kind: int = fcntl.LOCK_EX | fcntl.LOCK_NB
) -> Iterator[int | None]:
    """A block during which the file at `path` is open and locked; None in place of it while somebody else has the lock."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    held = False
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, kind)
            held = True
        yield file if held else None
    finally:
        if held:  # explicitly: a process that was forked meanwhile has the file open too, and would keep the lock
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _remove(path: Path) -> bool:
    """Remove a tar that nobody reads, or a part that nobody fetches; whether it is gone."""
    guard = path if path.suffix == ".tar" else path.parent / f"{path.name.partition('.')[0]}.lock"
    with _locked(guard) as lock:
        if lock is not None:
            path.unlink(missing_ok=True)
    return lock is not None


def _tell(lock: int, text: str) -> None:
    os.truncate(lock, 0)
    os.pwrite(lock, text.encode(), 0)


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _changed(path: Path) -> int:
    return state.st_mtime_ns if (state := _state(path)) else 0


def _size(path: Path) -> int:
    return state.st_size if (state := _state(path)) else -1
