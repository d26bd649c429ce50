"""`runs/NAME/`: what a run leaves, and whether a directory may be continued.

config.yaml  stream.jsonl  environment.jsonl (a row a start)  metrics.jsonl  log.txt  summary.json (at the end)
faults.jsonl (after one)  tensorboard/  csv/ (if asked for)  checkpoints/
running.lock (held by rank 0 while it trains; it falls with the process, so it is never stale)
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.checkpoints.directory import latest_checkpoint, named_checkpoint
from hyena_ds.checkpoints.manifest import Record, read_record
from hyena_ds.config.changes import Change, changes, forbidden
from hyena_ds.config.loading import dump_yaml, to_plain
from hyena_ds.config.names import check_new_name
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError

SUMMARY = "summary.json"
FAULTS = "faults.jsonl"
LOCK = "running.lock"
ENVIRONMENT = "environment.jsonl"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
_LASTING = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT),
)
"""Errors of a directory that another start would meet again."""


class RunDirectory:
    """Paths of a run."""

    def __init__(self, config: RunConfig, path: Path | None = None):
        """Where `config` puts it; or at `path`, which a copied run may be."""
        self.path = path or Path(config.output) / config.name
        self.config_file = self.path / CONFIG
        self.stream = self.path / "stream.jsonl"
        self.metrics = self.path / METRICS
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / SUMMARY
        self.faults = self.path / FAULTS
        self.lock = self.path / LOCK
        self.environment = self.path / ENVIRONMENT

    def is_complete(self) -> bool:
        return self.summary.is_file()

    def check(self, config: RunConfig) -> None:
        """Raise UserError unless the directory is new, or holds this very run and the config lets it continue.

        Reads no checkpoint's tensors: the ranks do, and compare again with the one that they resume from.
        """
        check_new_name(config.name, self.config_file, "name")
        named = config.resume not in ("latest", "never")
        if named:
            self.changes(config, named_checkpoint(config.resume))
        if not self.path.exists():
            self._check_place()
            return
        if not self.config_file.is_file():
            if any(entry.name not in (FAULTS, LOCK) for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: found a directory that is no run; choose another name or output")
            return
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise UserError(
                f"{self.checkpoints}: found a file, or a link that leads nowhere, wanted the directory of the checkpoints; "
                "put it back, or remove what is there to start afresh"
            )
        if config.resume == "never":
            raise UserError(f"{self.path}: holds a run and resume is 'never'; choose another name or resume: latest")
        if not named:
            self.changes(config, latest_checkpoint(self.checkpoints))

    def changes(self, config: RunConfig, checkpoint: Path | None) -> list[Change]:
        """What `config` changes of the run whose state `checkpoint` holds; without one, of a run that has not trained yet.

        Raises UserError with all changes that the state forbids.
        """
        if checkpoint is not None:
            record = read_record(checkpoint)
            before, rows, step = record.config, recorded_rows(record, checkpoint), record.state.step
        elif self.config_file.is_file():
            before, rows, step = self._recorded_config(), (), 0
        else:
            return []
        found = changes(before, to_plain(config))
        fixed = forbidden(found, rows, config.schedule, step)
        if fixed:
            shown = "; ".join(map(str, fixed))
            raise UserError(
                f"{checkpoint or self.path}: holds another run, which cannot go on with these settings changed ({shown}); "
                "set them back, choose another name, or remove the directory to start afresh"
            )
        return found

    def _check_place(self) -> None:
        """Raise UserError where the directory can never be made."""
        above = next(parent for parent in self.path.parents if parent.exists())
        if not above.is_dir():
            raise self._no_place(f"{above} is no directory")

    def _no_place(self, cause: str) -> UserError:
        return UserError(
            f"{self.path}: cannot be made or written ({cause}); choose another output, or make room for it"
        )

    def _recorded_config(self) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self.config_file.read_bytes())
        except (yaml.YAMLError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self.config_file}: not readable as the config of a run: the file is damaged; remove the directory to "
                "start afresh, or choose another name"
            )
        return found

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Keep every other run out of the directory.

        Waits `patience` seconds for one that is still there: after a fault its last process may take a while to notice.
        Raises UserError that names it when it stays.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in _LASTING:
                raise
            raise self._no_place(error.strerror or "") from None
        try:
            self._take(descriptor, time.monotonic() + patience)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int, until: float) -> None:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                    raise UserError(
                        f"{self.path}: {holder} is training this run; wait for its end, stop it, or choose another name"
                    ) from None
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                    return
                raise
            time.sleep(0.2)

    def create(self, config: RunConfig) -> None:
        """Make the directory, with the config as it is now."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = dump_yaml(config)
        if not self.config_file.exists() or self.config_file.read_bytes() != text.encode():
            partial = self.path / ".config.yaml.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.config_file)

    def write_summary(self, summary: dict[str, Any]) -> None:
        partial = self.path / f".{SUMMARY}.partial"
        partial.write_text(json.dumps(to_plain(summary), indent=1) + "\n")
        partial.replace(self.summary)


def recorded_rows(record: Record, checkpoint: Path) -> tuple[StageConfig, ...]:
    """The stages of the run that made the checkpoint."""
    try:
        return tuple(StageConfig(**row) for row in record.stages)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{checkpoint}: its stages are not readable ({error}); resume from another checkpoint"
        ) from None
