"""metrics.jsonl: a row a step and a row a validation, the one record of a run's history. Rank 0 only. Takes no torch.

    file as it is --unreadable lines--> metrics.damaged.jsonl
                  --rows of later steps than the one that the run continues after--> gone: they are written again
                  --all else--> stays

A row that cannot be written waits for the next attempt; the run asks whether one waits, and ends before many do.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hyena_ds.errors import LocalError
from hyena_ds.files.growing import GrowingFile
from hyena_ds.files.rows import METRICS, Row, read_lines
from hyena_ds.files.whole import aside, to_disk
from hyena_ds.monitoring.outlet import cause

DAMAGED = "metrics.damaged.jsonl"
"""Beside metrics.jsonl: what was found in it and is not readable, byte for byte."""
_NAMED = 5
"""Lines, and stretches of steps, that a sentence names."""


class Metrics:
    """The file, open for more rows."""

    def __init__(self, file: Path):
        self.file = file
        self._growing = GrowingFile(file)
        self._waiting: list[bytes] = []

    def append(self, row: Row) -> None:
        """Write a row, NaN and infinity as null, or keep it for the next attempt."""
        self._waiting.append((json.dumps(finite(row)) + "\n").encode())
        self.problem()

    def problem(self) -> str | None:
        """Why there are rows that wait, after another attempt to write them; None where there are none."""
        try:
            while self._waiting:
                self._growing.append(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            return f"{self.file}: cannot be written ({cause(error)})"
        return None

    def close(self) -> None:
        """Write what waits, if it can be written, and close the file."""
        self.problem()
        self._growing.close()


def recover(file: Path, step: int) -> tuple[list[Row], list[str]]:
    """Bring the file of a run that continues after `step` into order; the rows that stay, and what is to be said of it.

    Raises LocalError where the file cannot be read, or rows of it not be replaced.
    """
    try:
        return _recovered(file, step)
    except OSError as error:
        raise LocalError(
            f"{error.filename or file}: the rows of an earlier start cannot be taken over ({error.strerror}); make room, "
            "or put right what is in the way, and start the run again"
        ) from None


def _recovered(file: Path, step: int) -> tuple[list[Row], list[str]]:
    there = _is_there(file)
    rows: list[Row] = []
    gone, damaged = set[int](), set[int]()
    for line in read_lines(file, METRICS):
        if line.row is None:
            damaged.add(line.number)
        elif line.row["step"] > step:
            gone.add(line.number)
        else:
            rows.append(line.row)
    news = []
    if damaged:
        where = f"{_listed([(number, number) for number in sorted(damaged)], 'line')} not readable"
        try:
            _copy(file, damaged.__contains__, file.with_name(DAMAGED), "ab")
            news.append(f"{file}: {where}; kept in {DAMAGED}")
            gone |= damaged
        except OSError as error:  # better in the way than lost
            news.append(f"{file}: {where}; left there, because {error.filename} cannot be written ({error.strerror})")
    if gone:
        with aside(file) as partial:
            _copy(file, lambda number: number not in gone, partial, "xb")
    missing = _without_row(rows, step)
    if missing:
        count = sum(last - first + 1 for first, last in missing)
        found = "no row" if there else "missing, so no row"
        news.append(f"{file}: {found} of {_listed(missing, 'step')} ({count:,} of {step:,} steps)")
    return rows, news


def finite(row: Row) -> Row:
    """`row` as JSON can say it: None for NaN and infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _is_there(file: Path) -> bool:
    """Raises OSError where something else stands in its place: a pipe would never end."""
    if os.path.lexists(file) and not file.is_file():
        raise OSError(errno.EINVAL, "found something that is no file", str(file))
    return file.is_file()


def _copy(source: Path, wanted: Callable[[int], bool], target: Path, mode: str) -> None:
    """Write the lines of `source` with wanted numbers to `target`, and force them to the disk. Raises OSError that names `target`."""
    _is_there(target)
    text = b"\n"
    try:
        with target.open(mode) as out:
            for line in read_lines(source, METRICS):
                if wanted(line.number):
                    text = line.text
                    out.write(text)
            if not text.endswith(b"\n"):  # the last line of a file may have no end
                out.write(b"\n")
            to_disk(out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _without_row(rows: Sequence[Row], step: int) -> list[tuple[int, int]]:
    """First and last of each stretch of steps up to `step` that no row of a training step is of."""
    stretches, last = [], 0
    for number in [*sorted({row["step"] for row in rows if "loss" in row}), step + 1]:
        if number > last + 1:
            stretches.append((last + 1, number - 1))
        last = number
    return stretches


def _listed(stretches: Sequence[tuple[int, int]], what: str) -> str:
    """As steps 3, 5 to 9; the first ones, and how many more there are."""
    shown = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in stretches[:_NAMED]]
    more = len(stretches) - len(shown)
    many = len(stretches) > 1 or any(last > first for first, last in stretches)
    return f"{what}{'s' if many else ''} {', '.join(shown)}" + (f" and {more:,} more" if more else "")
