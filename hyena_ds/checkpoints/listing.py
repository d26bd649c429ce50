"""`hyena-ds checkpoints RUN`: which checkpoints a run has, what each holds, and which one it would resume from. No torch."""

from __future__ import annotations

from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, problem_of, step_of
from hyena_ds.checkpoints.manifest import read_manifest, read_record
from hyena_ds.errors import UserError
from hyena_ds.text import aligned

_TITLES = ("step", "stage", "tokens", "grid", "ZeRO stage", "MiB", "")


def list_checkpoints(run: str | Path, verify: bool) -> tuple[list[str], bool]:
    """(lines to print, whether all are whole) of a run's directory; with `verify` every byte is read."""
    directory = _directory_of(Path(run))
    found = checkpoints_in(directory)
    if not found:
        return [f"{directory}: no checkpoints"], True
    problems = {path: _problem(path, verify) for path in found}
    resumed = next((path for path in found if problems[path] is None), None)
    rows = [_TITLES, *(_row(path, problems[path], path == resumed) for path in reversed(found))]
    lines = aligned(rows, left=(len(_TITLES) - 1,))
    lines += [f"{path}: half-written; cleared at the next save" for path in sorted(directory.glob(".step-*.partial"))]
    if resumed is None:
        lines.append("resume: latest finds none of them whole")
    if not verify:
        lines.append("manifests, run states, presence and sizes were checked; --verify reads every byte")
    return lines, not any(problems.values())


def _directory_of(run: Path) -> Path:
    for directory in (run / "checkpoints", run):
        if directory.is_dir():
            return directory
    raise UserError(f"{run}: found no directory, wanted that of a run; name one, for instance runs/quickstart")


def _problem(checkpoint: Path, verify: bool) -> str | None:
    problem = problem_of(checkpoint, 0 if verify else None)
    if problem is None:
        try:
            read_record(checkpoint)
        except UserError as error:
            return str(error)
    return problem


def _row(checkpoint: Path, problem: str | None, resumed: bool) -> tuple[str, ...]:
    if problem is not None:
        return (str(step_of(checkpoint)), "", "", "", "", "", problem)
    record, manifest = read_record(checkpoint), read_manifest(checkpoint)
    grid = " x ".join(f"{axis} {size}" for axis, size in record.grid.items())
    size = f"{manifest.bytes / 2**20:,.1f}"
    state = "complete; resume: latest takes this one" if resumed else "complete"
    where = record.state
    return (str(where.step), str(where.stage), f"{where.tokens:,}", grid, str(record.zero_stage), size, state)
