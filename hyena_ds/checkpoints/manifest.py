"""What a checkpoint says of itself, and whether it is what was written. Takes no torch.

    step-00000100/manifest.json    run, step, digest of the data, and bytes and SHA-256 of every other file, or of its
                                   parts where several ranks wrote it; written last
    step-00000100/run_state.json   where the run stands, on what it ran, its config

The manifest guards itself: its checksum is over its own content, and its text must be exactly the one that follows from
that content. It names its step and its run, so that one of another checkpoint does not pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError
from hyena_ds.files.whole import to_disk

MANIFEST, RUN_STATE, WEIGHTS = "manifest.json", "run_state.json", "weights.safetensors"
FORMAT = "hyena-ds checkpoint 2"
FORMAT_OF_PARTS = "hyena-ds checkpoint 3"
"""Said by a manifest whose files have parts. What has none is written, and read by older versions, as it always was."""
STEP_NAME = re.compile(r"step-([0-9]{8,})")


@dataclass(frozen=True)
class RunState:
    """Where a run stands. The stream's position is the step: the order of samples is a function of it."""

    step: int
    """Optimizer steps done."""
    stage: int
    """Stage of the last step."""
    tokens: int
    """Tokens trained on."""
    skipped: tuple[int, ...] = ()
    """Steps done, numbered from 0, whose loss or gradients were not finite: nothing was trained on them."""
    passed_over: tuple[int, ...] = ()
    """Steps, done or to come, that were such before the run was rolled back: nothing is trained on them either."""
    roll_backs: int = 0
    """Times that the run was rolled back."""


@dataclass(frozen=True)
class Record:
    """What run_state.json holds: where the run stands, and on what it ran."""

    run: str
    """Random name of the run, the same in all of its checkpoints."""
    state: RunState
    updates: int
    """Updates that the optimizer has made: fewer than steps where some were skipped."""
    ranks: int
    grid: dict[str, int]
    """Ranks along each axis, in words."""
    zero_stage: int
    stages: list[dict[str, Any]]
    """The rows of the context warmup, one for each stage."""
    config: dict[str, Any]

    def text(self) -> str:
        """The text of run_state.json."""
        plain = asdict(self)
        return json.dumps({"format": FORMAT, **plain.pop("state"), **plain}, indent=1) + "\n"


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    bytes: int
    sha256: str
    """The sum of its bytes; where there are parts, that of their sums as one text of hexadecimal digits."""
    parts: tuple[tuple[int, str], ...] = ()
    """Bytes and SHA-256 of the pieces, in order, that several ranks wrote; empty where one did."""

    @property
    def checked(self) -> tuple[tuple[int, str], ...]:
        """Bytes and SHA-256 of what is compared on its own."""
        return self.parts or ((self.bytes, self.sha256),)


def joined(parts: Sequence[Written]) -> Written:
    """The file whose pieces, in order, are these."""
    if len(parts) == 1:
        return parts[0]
    return Written(
        sum(part.bytes for part in parts), _sum_of_sums(parts), tuple((part.bytes, part.sha256) for part in parts)
    )


def _sum_of_sums(parts: Iterable[Any]) -> str:
    sums = [part.sha256 if isinstance(part, Written) else part[1] for part in parts]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A manifest that passed its own check."""

    run: str
    step: int
    files: dict[str, Written]
    shards: str | None = None
    """Digest of the list of the shards that were trained on (data/identity.py); None in a checkpoint from before it."""
    hosts: dict[str, str] = field(default_factory=dict)
    """The host that wrote each file, where each wrote to a disk of its own."""

    @property
    def bytes(self) -> int:
        """Size of the checkpoint in bytes, without the manifest."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose manifest, run state and file sizes were checked."""

    path: Path
    manifest: Manifest
    record: Record
    held: dict[str, int] = field(default_factory=dict)
    """The node that has each file on a disk of its own; empty where all see all."""

    def __str__(self) -> str:
        return f"{self.path}, of which each host has a part" if self.held else str(self.path)


def write_file(path: Path, chunks: Iterable[Any], begin: int | None = None) -> Written:
    """Write bytes-like `chunks` to `path` and force them to the disk. Raises OSError that names the file.

    With `begin` they are one piece of a file, which others write too, from that byte on.
    """
    digest, count = hashlib.sha256(), 0
    try:
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if begin is None else 0), 0o666), "wb"
        ) as file:
            file.seek(begin or 0)
            for chunk in chunks:  # writing and hashing a large chunk both let other threads run
                file.write(chunk)
                digest.update(chunk)
                count += len(chunk)
            to_disk(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    return Written(count, digest.hexdigest())


def write_manifest(
    directory: Path,
    run: str,
    step: int,
    files: dict[str, Written],
    shards: str | None = None,
    hosts: dict[str, str] | None = None,
) -> None:
    """The last file of a checkpoint; `shards` is the digest of its data, `hosts` who wrote each file to a disk of its own."""
    form = FORMAT_OF_PARTS if any(file.parts for file in files.values()) else FORMAT
    content = {"format": form, "run": run, "step": step, "files": {name: _plain(files[name]) for name in files}}
    content |= {name: said for name, said in (("shards", shards), ("hosts", hosts)) if said is not None}
    write_file(directory / MANIFEST, [_text(content).encode()])


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises UserError unless it is there, undamaged, and of this checkpoint."""
    path = checkpoint / MANIFEST
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UserError(f"{path}: found something that is no file, wanted a manifest; {_CURE}")
        with path.open("rb") as file:
            raw = file.read(_LARGEST)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, so the checkpoint is not complete; {_CURE}") from None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror}); {_CURE}") from None
    try:
        content = json.loads(raw)
        del content["checksum"]
        if _text(content).encode() != raw:
            raise ValueError
        if content["format"] not in (FORMAT, FORMAT_OF_PARTS):
            raise UserError(
                f"{path}: found format '{content['format']}', wanted '{FORMAT}' or '{FORMAT_OF_PARTS}'; {_CURE}"
            )
        files = {_file_name(name): _written(file) for name, file in content["files"].items()}
        manifest = Manifest(content["run"], content["step"], files, content.get("shards"), content.get("hosts", {}))
        if not (_is_text(manifest.run) and _is_count(manifest.step) and all(map(_is_written, files.values()))):
            raise ValueError
        if not (manifest.shards is None or _is_text(manifest.shards)) or not all(
            map(_is_text, manifest.hosts.values())
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: does not match its own checksum: the file is damaged; {_CURE}") from None
    named = STEP_NAME.fullmatch(checkpoint.name)
    if named and int(named[1]) != manifest.step:
        raise UserError(
            f"{path}: found the manifest of step {manifest.step}, wanted that of {checkpoint.name}; {_CURE}"
        )
    return manifest


def read_checkpoint(checkpoint: Path, first: int | None = None, every: int = 1) -> Checkpoint:
    """Raises UserError that names the file and what is wrong, unless manifest and run state hold and every file has its size.

    With `first`, the bytes of every `every`-th file from there on are read and compared too.
    """
    found = read_outline(checkpoint)
    for number, (name, wanted) in enumerate(found.manifest.files.items()):
        read = first is not None and number % every == first
        if name != RUN_STATE:
            check_file(checkpoint, name, wanted, range(len(wanted.checked)) if read else ())
    return found


def read_outline(checkpoint: Path) -> Checkpoint:
    """The checkpoint by manifest and run state alone: no other file is looked at. Raises UserError as `read_checkpoint`."""
    manifest = read_manifest(checkpoint)
    if RUN_STATE not in manifest.files or WEIGHTS not in manifest.files:
        raise UserError(f"{checkpoint / MANIFEST}: does not list {RUN_STATE} and {WEIGHTS}; {_CURE}")
    check_file(checkpoint, RUN_STATE, manifest.files[RUN_STATE], (0,))
    return Checkpoint(checkpoint, manifest, _read_record(checkpoint / RUN_STATE, manifest))


def check_file(checkpoint: Path, name: str, wanted: Written, parts: Collection[int]) -> None:
    """Raise UserError unless the file is one of the checkpoint's own, has its size, and these of its parts their sums."""
    file = checkpoint / name
    try:
        found = file.lstat()
        is_link = stat.S_ISLNK(found.st_mode)
        found = file.stat() if is_link else found
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError
        if is_link and not file.resolve().is_relative_to(checkpoint.resolve()):
            raise UserError(f"{file}: found a link out of the checkpoint, wanted a file of its own; {_CURE}")
        if found.st_size != wanted.bytes:
            raise UserError(f"{file}: found {found.st_size} bytes, wanted {wanted.bytes}: the file is damaged; {_CURE}")
        if parts and not sums_agree(file, wanted, parts):
            raise UserError(f"{file}: does not match its SHA-256 in {MANIFEST}: the file is damaged; {_CURE}")
    except FileNotFoundError:
        raise UserError(f"{file}: missing, and the checkpoint's manifest lists it; {_CURE}") from None
    except OSError as error:
        raise UserError(f"{file}: not readable ({error.strerror}); {_CURE}") from None


def sums_agree(path: Path, wanted: Written, parts: Collection[int]) -> bool:
    """Whether these parts of a file have the sums that were written. Raises OSError."""
    ends = list(accumulate(count for count, _ in wanted.checked))
    with path.open("rb") as file:
        for part in parts:
            count, sha256 = wanted.checked[part]
            file.seek(ends[part] - count)
            digest = hashlib.sha256()
            while count and (block := file.read(min(count, _BLOCK))):
                digest.update(block)
                count -= len(block)
            if digest.hexdigest() != sha256:
                return False
    return True


def _read_record(path: Path, manifest: Manifest) -> Record:
    """Raises UserError unless it is readable and of the same run and step as the manifest."""
    try:
        raw = json.loads(path.read_bytes())
        del raw["format"]
        for name, holds in _COLUMNS.items():
            if not holds(raw[name]):
                raise ValueError(f"its {name} has another type, or is out of range")
        state = {field.name: raw.pop(field.name) for field in fields(RunState)}
        state |= {name: tuple(state[name]) for name in ("skipped", "passed_over")}
        record = Record(state=RunState(**state), **raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a readable run state ({error}): the file is damaged; {_CURE}") from None
    if (record.run, record.state.step) != (manifest.run, manifest.step):
        raise UserError(f"{path}: found the state of another run or step than {MANIFEST} names; {_CURE}")
    return record


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000


_COUNTS = ("step", "stage", "tokens", "roll_backs", "updates", "ranks", "zero_stage")
_COLUMNS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(("skipped", "passed_over"), lambda found: isinstance(found, list) and all(map(_is_count, found))),
    "run": _is_text,
    "grid": lambda found: isinstance(found, dict) and all(map(_is_count, found.values())),
    "stages": lambda found: isinstance(found, list) and all(isinstance(row, dict) for row in found),
    "config": lambda found: isinstance(found, dict),
}
"""What run_state.json holds, and whether it is of the type with which it was written."""


def _plain(file: Written) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {name: value for name, value in asdict(file).items() if name != "parts" or value}


def _written(raw: dict[str, Any]) -> Written:
    """What `_plain` wrote. Raises ValueError or TypeError."""
    return Written(**{**raw, "parts": tuple((count, sha256) for count, sha256 in raw.get("parts", ()))})


def _is_written(file: Written) -> bool:
    if not all(_is_count(count) and _is_sum(sha256) for count, sha256 in (*file.parts, (file.bytes, file.sha256))):
        return False
    return not file.parts or (sum(count for count, _ in file.parts), _sum_of_sums(file.parts)) == (
        file.bytes,
        file.sha256,
    )


def _is_sum(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _file_name(name: str) -> str:
    """`name`, if it is one of a file in the checkpoint itself. Raises ValueError."""
    if name in ("", ".", "..", MANIFEST) or "/" in name or "\0" in name:
        raise ValueError
    return name


def _text(content: dict[str, Any]) -> str:
    """The one text of a manifest with this content."""
    canonical = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=1, sort_keys=True) + "\n"


_BLOCK = 1 << 20
_LARGEST = 64 << 20
"""Bytes of a manifest at most: a file takes about 150."""
_CURE = "remove this checkpoint or resume from another one"
