"""The directory of a run's checkpoints: which are there, which one is resumed, which go. Takes no torch.

checkpoints/.step-00000100.partial/   being written, or left by a killed run; cleared at the next save
checkpoints/step-00000100/            complete: renamed once every file and the manifest are on the disk
checkpoints/latest                    names the newest one, for people and scripts; nothing here relies on it
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hyena_ds.checkpoints.manifest import STEP_NAME, check_checkpoint, write_file
from hyena_ds.errors import UserError

LATEST = "latest"


def checkpoints_in(directory: Path) -> list[Path]:
    """The newest first, whole or damaged."""
    found = [path for path in directory.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def problem_of(checkpoint: Path, first: int | None = None, every: int = 1) -> str | None:
    """What is wrong with it, or None; see `check_checkpoint`."""
    try:
        check_checkpoint(checkpoint, first, every)
    except UserError as error:
        return str(error)
    return None


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest one without a problem by manifest, run state and sizes; None where there is none at all.

    Raises UserError when there are checkpoints and all are damaged.
    """
    found = checkpoints_in(directory)
    for checkpoint in found:
        if problem_of(checkpoint) is None:
            return checkpoint
    if found:
        raise none_is_whole(directory, problem_of(found[0]) or "")
    return None


def named_checkpoint(resume: str) -> Path:
    """The checkpoint that `resume: PATH` names."""
    path = Path(resume)
    if not path.is_dir():
        raise UserError(
            f"resume: found '{resume}', which is no checkpoint; wanted latest, never or a checkpoint's path"
        )
    return path


def none_is_whole(directory: Path, newest: str) -> UserError:
    return UserError(
        f"{directory}: none of the checkpoints is whole ({newest}); put an undamaged copy back, or remove the "
        "run's directory to start afresh"
    )


def begin(directory: Path, step: int) -> None:
    """An empty directory to write into; what killed runs left half-written goes."""
    for leftover in directory.glob(".step-*.partial"):
        shutil.rmtree(leftover)
    partial_of(directory, step).mkdir(parents=True)


def partial_of(directory: Path, step: int) -> Path:
    return directory / f".step-{step:08d}.partial"


def complete(directory: Path, step: int, keep_last: int, keep_every: int | None) -> None:
    """The partial directory becomes the checkpoint of `step`, `latest` names it, and older ones go."""
    partial = partial_of(directory, step)
    final = directory / f"step-{step:08d}"
    _sync_directory(partial)
    if final.exists():  # a damaged one, or one of a run that was resumed from an earlier step
        _remove(final)
    partial.rename(final)
    _sync_directory(directory)
    pointer = directory / f".{LATEST}.partial"
    write_file(pointer, [f"{final.name}\n".encode()])
    pointer.replace(directory / LATEST)
    _sync_directory(directory)
    # Damaged ones neither count nor go: somebody may want to see what happened to them.
    whole = [path for path in checkpoints_in(directory) if problem_of(path) is None]
    for path in whole[keep_last:]:
        if path != final and not (keep_every and step_of(path) % keep_every == 0):
            _remove(path)


def set_aside_after(directory: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps, which a run resumed from `step` leaves behind; returns their new names."""
    moved = []
    for path in checkpoints_in(directory):
        if step_of(path) > step:
            aside = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            moved.append(path.rename(aside))
    return moved


def _remove(checkpoint: Path) -> None:
    """First out of sight, then file by file: a kill in between leaves no checkpoint that looks damaged."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
