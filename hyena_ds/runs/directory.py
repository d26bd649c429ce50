"""`runs/NAME/`: what a run leaves, and whether a directory may be continued.

config.yaml  shards.json (digests of its data)  stream.jsonl  environment.jsonl (a row a start)  metrics.jsonl  log.txt  summary.json (at the end)
faults.jsonl (after one)  hosts.txt (those that a supervisor starts it on)  tensorboard/  csv/ (if asked for)  checkpoints/
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
from hyena_ds.checkpoints.manifest import Checkpoint, read_checkpoint
from hyena_ds.config.changes import Change, changes, forbidden
from hyena_ds.config.loading import dump_yaml, to_plain
from hyena_ds.config.names import check_new_name
from hyena_ds.config.nodes import compose, read_text_file
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import SHARDS, ShardList, read_shard_list
from hyena_ds.errors import UserError
from hyena_ds.files.whole import write_whole
from hyena_ds.redaction import kept

SUMMARY = "summary.json"
FAULTS = "faults.jsonl"
LOCK = "running.lock"
HOSTS = "hosts.txt"
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
        self.shards = self.path / SHARDS
        self.stream = self.path / "stream.jsonl"
        self.metrics = self.path / METRICS
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / SUMMARY
        self.faults = self.path / FAULTS
        self.lock = self.path / LOCK
        self.hosts = self.path / HOSTS
        self.environment = self.path / ENVIRONMENT

    def is_complete(self) -> bool:
        """Whether the run has trained to its end: summary.json is written last."""
        return self.summary.is_file()

    def complete_message(self) -> list[str]:
        """What is said when a finished run is started again."""
        return [
            f"The run in {self.path} is complete: {self.summary} holds its results.",
            f"To train on from its weights, give a config another name and initialize_from: {self.path}",
            f"To start afresh, remove {self.path}, or choose another name (name=OTHER on the command line).",
        ]

    def check(self, config: RunConfig) -> Checkpoint | None:
        """The checkpoint that `config` goes on from, None where there is none.

        Raises UserError unless the directory is new, or holds this very run and the config lets it continue. Reads no checkpoint's tensors: the ranks do, and compare again with the one that they resume from.
        """
        goes_on = self.check_place(config)
        checkpoint = None
        if config.resume not in ("latest", "never"):
            checkpoint = read_checkpoint(named_checkpoint(config.resume))
        elif goes_on:
            checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None or goes_on:
            self.changes(config, checkpoint)
        return checkpoint

    def check_place(self, config: RunConfig) -> bool:
        """Whether the directory holds a run to go on with. Raises UserError where neither that nor a new one can be.

        Looks at no checkpoint.
        """
        check_new_name(config.name, self.config_file, "name")
        if not self.path.exists():
            self._check_place()
            return False
        if not self.config_file.is_file():
            brought = (
                (self.checkpoints.name, METRICS) if config.checkpoint.tiers else ()
            )  # by a start that was cut short
            if any(entry.name not in (FAULTS, LOCK, HOSTS, *brought) for entry in self.path.iterdir()):
                raise UserError(f"{self.path}: found a directory that is no run; choose another name or output")
            return False
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise UserError(
                f"{self.checkpoints}: found a file, or a link that leads nowhere, wanted the directory of the checkpoints; "
                "put it back, or remove what is there to start afresh"
            )
        if config.resume == "never":
            raise UserError(f"{self.path}: holds a run and resume is 'never'; choose another name or resume: latest")
        return True

    def changes(self, config: RunConfig, checkpoint: Checkpoint | None) -> list[Change]:
        """What `config` changes of the run whose state `checkpoint` holds; without one, of a run that has not trained yet.

        Raises UserError with all changes that the state forbids.
        """
        if checkpoint is not None:
            record = checkpoint.record
            before, rows, step = record.config, recorded_rows(checkpoint), record.state.step
        elif self.config_file.is_file():
            before, rows, step = self._recorded_config(), (), 0
        else:
            return []
        # What is kept holds no secrets, but in a run of an older version.
        found = changes(kept(before), kept(to_plain(config)))
        fixed = forbidden(found, rows, config.schedule, step, places_are_free=self._knows_its_data(checkpoint))
        if fixed:
            raise UserError(
                f"{checkpoint or self.path}: holds another run, which cannot go on with these settings changed "
                f"({'; '.join(map(str, fixed))}); set them back, choose another name, or remove the directory to start afresh"
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
            text = read_text_file(self.config_file, "the config of a run", "the YAML that a run keeps")
            compose(text, str(self.config_file))  # bounded: what aliases share would be walked as often as it is named
            found = yaml.safe_load(text)
        except (UserError, yaml.YAMLError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self.config_file}: not readable as the config of a run: the file is damaged; remove the directory to "
                "start afresh, or choose another name"
            )
        return found

    def compare_data(self, checkpoint: Checkpoint | None, now: ShardList) -> list[str]:
        """Raise UserError, naming the first shard that differs, unless `now` lists the data that `checkpoint` was trained on.

        Without a checkpoint, those of this run. Returns what the log should say.
        """
        digest = None if checkpoint is None else checkpoint.manifest.shards
        file = self._list_of(checkpoint)
        problem = ""
        try:
            before = read_shard_list(file)
        except UserError as error:
            before, problem = None, str(error)
            if digest is None:
                raise
        if digest is not None and before is not None and before.digest != digest:
            before, problem = None, f"{file}: is not the list that {checkpoint} was trained with"
        if digest is None and before is None:
            if checkpoint is None and not self.config_file.is_file():
                return []
            where = checkpoint or self.path
            return [
                f"{where}: is from before the data of a run were recorded, so nothing can be compared; the digests of its "
                f"{now.count} shards are recorded now in {self.shards}"
            ]
        if now.digest == (digest or (before.digest if before else "")):
            return [f"{problem}; it is written anew"] if problem and file == self.shards else []
        found = before.difference(now) if before is not None else None
        missing = problem or f"{file} is missing"
        raise UserError(
            f"{checkpoint or self.path}: was trained on other data than these: "
            f"{found or f'which shard differs cannot be said ({missing})'}; name a place where the same shards are, or "
            "choose another name to start afresh"
        )

    def _list_of(self, checkpoint: Checkpoint | None) -> Path:
        """shards.json of the run that the checkpoint lies in."""
        if checkpoint is None or checkpoint.held or checkpoint.path.absolute().parent == self.checkpoints.absolute():
            return self.shards
        return checkpoint.path.absolute().parent.parent / SHARDS

    def _knows_its_data(self, checkpoint: Checkpoint | None) -> bool:
        if checkpoint is not None and checkpoint.manifest.shards is not None:
            return True
        return self._list_of(checkpoint).is_file()

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

    def create(self, config: RunConfig, shards: ShardList | None = None) -> None:
        """Make the directory, with the config as it is now, less its secrets, and the list of its shards."""
        self.path.mkdir(parents=True, exist_ok=True)
        if shards is not None:
            _write(self.shards, shards.text)
        _write(self.config_file, dump_yaml(kept(to_plain(config))))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json. Raises OSError."""
        write_whole(self.summary, json.dumps(to_plain(summary), indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    """Write the file, unless it says so already."""
    if not file.exists() or file.read_bytes() != text.encode():
        write_whole(file, text)


def recorded_rows(checkpoint: Checkpoint) -> tuple[StageConfig, ...]:
    """The stages of the run that made the checkpoint."""
    try:
        return tuple(StageConfig(**row) for row in checkpoint.record.stages)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{checkpoint}: its stages are not readable ({error}); resume from another checkpoint"
        ) from None
