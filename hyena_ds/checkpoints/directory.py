"""The directory of a run's checkpoints: which are there, which one is resumed, which go. Takes no torch.

checkpoints/.step-00000100.partial/   being written, or left by a killed run; cleared at the next save
checkpoints/step-00000100/            complete: renamed once every file and the manifest are on the disk
checkpoints/latest                    names the newest one, for people and scripts; nothing here relies on it
checkpoints/local                     which run's parts on local disks count, and the newest step of theirs (local_tier.py)
checkpoints/selected                  names the one of the best validation, in a run that selects: the run's weights are its own

A checkpoint may be a link to where somebody has moved it: it is read like any other. Nothing here follows a link to write
or remove anything, and whatever else stands in the way of a checkpoint is moved aside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

from hyena_ds.checkpoints.manifest import MANIFEST, STEP_NAME, Checkpoint, read_checkpoint
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.files.whole import remove, sync_directory, write_whole

LATEST = "latest"
SELECTED = "selected"
LOCAL = "local"
_MOST_BYTES = 100
"""Bytes of a file that names a checkpoint, at most."""


def checkpoints_in(directory: Path) -> list[Path]:
    """The newest first, whole or damaged."""
    found = [path for path in directory.glob("step-*") if STEP_NAME.fullmatch(path.name) and os.path.isdir(path)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def name_of(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08d}"


def problem_of(checkpoint: Path, first: int | None = None, every: int = 1) -> str | None:
    """What is wrong with it, or None; see `read_checkpoint`."""
    found = read_or_problem(checkpoint, first, every)
    return found if isinstance(found, str) else None


def read_or_problem(checkpoint: Path, first: int | None = None, every: int = 1) -> Checkpoint | str:
    """The checkpoint, or what is wrong with it; see `read_checkpoint`."""
    try:
        return read_checkpoint(checkpoint, first, every)
    except UserError as error:
        return str(error)


def newest_whole(directory: Path) -> Checkpoint | None:
    """The newest one without a problem by manifest, run state and sizes; None where there is none."""
    found = map(read_or_problem, checkpoints_in(directory))
    return next((checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)), None)


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest one without a problem by manifest, run state and sizes; None where there is none at all.

    Raises UserError when there are checkpoints and all are damaged.
    """
    newest, found = newest_whole(directory), checkpoints_in(directory)
    if newest is None and found:
        raise none_is_whole(directory, problem_of(found[0]) or "")
    return newest


def meant_checkpoint(directory: Path) -> Checkpoint | None:
    """The one whose weights are the run's: the selected one, else `latest_checkpoint`, whose errors it raises."""
    try:
        with (directory / SELECTED).open("rb") as file:
            name = file.read(_MOST_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        name = ""
    if STEP_NAME.fullmatch(name) and os.path.isdir(directory / name):
        return read_checkpoint(directory / name)
    return latest_checkpoint(directory)


def read_note(directory: Path) -> tuple[str, int]:
    """(the run whose parts on local disks count, the newest step that all hosts saved theirs of); ("", 0) where nothing says so."""
    try:
        with (directory / LOCAL).open("rb") as file:
            run, step = file.read(_MOST_BYTES).decode("ascii").split()
        return run, int(step)
    except (OSError, ValueError):
        return "", 0


def write_note(directory: Path, run: str, step: int) -> None:
    """Say what `read_note` returns. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / LOCAL, f"{run} {step}\n")


def named_checkpoint(resume: str) -> Path:
    """The checkpoint that `resume: PATH` names. Raises UserError that says what the path is, where it is none."""
    shown = in_one_line(resume, MOST_QUOTED)
    path = Path(resume)
    wanted = "wanted latest, never or a checkpoint's path"
    if not os.path.isdir(path):
        if os.path.isfile(path) and os.path.lexists(path.parent / MANIFEST):
            raise UserError(f"resume: found '{shown}', a file of a checkpoint; give its directory, {path.parent}")
        what = "which is no checkpoint but a file" if os.path.isfile(path) else "which is no checkpoint"
        raise UserError(f"resume: found '{shown}', {what}; {wanted}")
    if os.path.lexists(path / MANIFEST) or STEP_NAME.fullmatch(path.name):
        return path
    for directory, what in ((path / "checkpoints", "the directory of a run"), (path, "the directory of checkpoints")):
        if checkpoints_in(directory):
            newest = newest_whole(directory)
            cure = f"give one of them, for instance {newest}" if newest else "none of them is whole; give another one"
            raise UserError(f"resume: found '{shown}', {what}; {wanted}: {cure}")
    raise UserError(f"resume: found '{shown}', which is no checkpoint but another directory; {wanted}")


def none_is_whole(directory: Path, newest: str) -> UserError:
    """The error of a run whose checkpoints are all damaged; `newest` is what is wrong with the newest one."""
    return UserError(
        f"{directory}: none of the checkpoints is whole ({newest}); put an undamaged copy back, or remove the "
        "run's directory to start afresh"
    )


def begin(directory: Path, step: int) -> Path:
    """Make an empty directory to write into, and clear what killed runs left half-written."""
    for leftover in directory.glob(".step-*.partial"):
        _clear(leftover)
    partial = _free(directory / f".step-{step:08d}", ".partial")
    partial.mkdir(parents=True)
    return partial


def complete(partial: Path, step: int, selected: int | None = None) -> list[str]:
    """Make `partial` the checkpoint of `step`, which `latest` names from then on.

    Where it is that of the step `selected`, `selected` names it too. Returns what is to be said: what had to be moved aside.
    """
    directory = partial.parent
    final = directory / f"step-{step:08d}"
    news: list[str] = []
    sync_directory(partial)
    if os.path.lexists(final):
        # A damaged one, or one of a run that was resumed from an earlier step, goes; what is none is not ours to remove.
        own = not final.is_symlink() and os.path.lexists(final / MANIFEST)
        news += clear([_hidden(final)]) if own else [_moved_aside(final)]
    partial.rename(final)
    sync_directory(directory)
    try:
        news += _point_to(directory, final.name)
    except OSError as error:
        news.append(f"{directory / LATEST}: cannot be written ({error.strerror}); nothing here relies on it")
    if step == selected:
        write_whole(directory / SELECTED, f"{final.name}\n")
        sync_directory(directory)
    return news


def surplus(
    found: Sequence[Path],
    step: int,
    keep_last: int,
    keep_every: int | None,
    selected: int | None,
    is_whole: Callable[[Path], bool],
) -> list[Path]:
    """Which of the checkpoints `found`, the newest first, are to go now that there is that of `step`.

    Damaged ones neither count nor go: somebody may want to see what happened to them. Asks of no more than it must.
    """
    kept, going = 0, []
    for path in found:
        stays = step_of(path) in (step, selected) or bool(keep_every and step_of(path) % keep_every == 0)
        if kept < keep_last:
            kept += is_whole(path)
        elif not stays and is_whole(path):
            going.append(path)
    return going


def hide(surplus: Sequence[Path]) -> tuple[list[str], dict[Path, Path]]:
    """Take these checkpoints out of sight, so that a kill before they are removed leaves none that looks damaged.

    (What is to be said of those that cannot go, where the others are now.)
    """
    news: list[str] = []
    hidden: dict[Path, Path] = {}
    for path in surplus:
        if path.is_symlink():
            news.append(f"{path}: a link, left where it is; remove it, and what it names, when you no longer want it")
        else:
            try:
                hidden[path] = _hidden(path)
            except OSError as error:
                news.append(f"{path}: cannot be removed ({error.strerror}); tried again at the next save")
    return news, hidden


def clear(hidden: Iterable[Path]) -> list[str]:
    """Remove what is out of sight; what is to be said of what is still there."""
    problems = (_clear(path) for path in hidden)
    return [f"{problem}; tried again at the next save" for problem in problems if problem is not None]


def set_aside_after(directory: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps, which a run resumed from `step` leaves behind; returns their new names."""
    moved = []
    for path in checkpoints_in(directory):
        if step_of(path) > step:
            aside = path.with_name(f"abandoned-{path.name}")
            if not aside.is_symlink():
                shutil.rmtree(aside, ignore_errors=True)
            moved.append(path.rename(_free(aside)))
    return moved


def _point_to(directory: Path, name: str) -> list[str]:
    """Let `latest` name a checkpoint."""
    latest = directory / LATEST
    news = [_moved_aside(latest)] if latest.is_dir() and not latest.is_symlink() else []
    write_whole(latest, f"{name}\n")
    sync_directory(directory)
    return news


def _hidden(checkpoint: Path) -> Path:
    """Where it is now, out of sight. Raises OSError where it is still in sight."""
    return checkpoint.rename(_free(checkpoint.with_name(f".{checkpoint.name}.old"), ".partial"))


def _clear(path: Path) -> str | None:
    """Remove a file, a link (and not what it names) or a directory; why it is still there."""
    try:
        remove(path)
    except OSError as error:
        return f"{path}: cannot be removed ({error.strerror})"
    return None


def _moved_aside(path: Path) -> str:
    """Give a stranger another name, and say so."""
    what = "a link" if path.is_symlink() else "a directory" if path.is_dir() else "a file"
    aside = path.rename(_free(path.with_name(f"abandoned-{path.name}")))
    return f"{path}: found {what} in the way; it is now {aside}"


def _free(path: Path, suffix: str = "") -> Path:
    """`path` with `suffix`, or with a number before it where that name is taken."""
    names = (path.with_name(f"{path.name}{f'-{number}' if number else ''}{suffix}") for number in count())
    return next(name for name in names if not os.path.lexists(name))
