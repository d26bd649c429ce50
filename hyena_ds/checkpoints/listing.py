"""`hyena-ds checkpoints RUN`: which checkpoints a run has, what each holds, and which one it would resume from. No torch."""

from __future__ import annotations

from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, read_note, read_or_problem, step_of
from hyena_ds.checkpoints.manifest import Checkpoint
from hyena_ds.errors import UserError
from hyena_ds.text import aligned

_TITLES = ("step", "stage", "tokens", "grid", "ZeRO stage", "MiB", "")


def list_checkpoints(run: str | Path, verify: bool) -> tuple[list[str], bool]:
    """(lines to print, whether all are whole) of a run's directory; with `verify` every byte is read."""
    directory = _directory_of(Path(run))
    found = checkpoints_in(directory)
    _, step = read_note(directory)
    parts = [f"parts of step {step} were saved on the hosts' own disks; resume: latest takes them where all are whole"]
    if not found:
        return [f"{directory}: no checkpoints", *(parts if step else [])], True
    read = {path: read_or_problem(path, 0 if verify else None) for path in found}
    whole = [checkpoint for checkpoint in read.values() if isinstance(checkpoint, Checkpoint)]
    resumed = whole[0] if whole else None
    rows = [_TITLES, *(_row(path, read[path], resumed) for path in reversed(found))]
    lines = aligned(rows, left=(len(_TITLES) - 1,))
    lines += [f"{path}: half-written; cleared at the next save" for path in sorted(directory.glob(".step-*.partial"))]
    if step > (0 if resumed is None else resumed.manifest.step):
        lines += parts
    if resumed is None:
        lines.append("resume: latest finds none of them whole")
    if not verify:
        lines.append("manifests, run states, presence and sizes were checked; --verify reads every byte")
    return lines, len(whole) == len(found)


def _directory_of(run: Path) -> Path:
    for directory in (run / "checkpoints", run):
        if directory.is_dir():
            return directory
    raise UserError(f"{run}: found no directory, wanted that of a run; name one, for instance runs/quickstart")


def _row(path: Path, checkpoint: Checkpoint | str, resumed: Checkpoint | None) -> tuple[str, ...]:
    if isinstance(checkpoint, str):
        return (str(step_of(path)), "", "", "", "", "", checkpoint)
    record, manifest = checkpoint.record, checkpoint.manifest
    grid = " x ".join(f"{axis} {size}" for axis, size in record.grid.items())
    size = f"{manifest.bytes / 2**20:,.1f}"
    state = "complete; resume: latest takes this one" if checkpoint is resumed else "complete"
    where = record.state
    return (str(where.step), str(where.stage), f"{where.tokens:,}", grid, str(record.zero_stage), size, state)
