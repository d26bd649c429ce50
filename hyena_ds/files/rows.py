"""What a run records while it trains, read again: also of a run that is under way, was killed, or was damaged since.

    file of JSON lines --lines that are not UTF-8, not JSON, or not of the file's shape are left out, and counted--> rows

Nothing that such a file holds ends its reader: a row that comes out of here has the columns, and their types, that later
code relies on. Takes no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Check = Callable[[Any], bool]

LONGEST = 1 << 20
"""Bytes of a line, and of summary.json, at most: what is longer is damaged."""
_MOST = 2**53
"""Counts are below."""


def is_count(value: Any) -> bool:
    """Whether it is an integer that counts something."""
    return type(value) is int and 0 <= value < _MOST


def is_number(value: Any) -> bool:
    """Whether it is a number, or null, which stands for NaN and infinity."""
    return value is None or (type(value) in (int, float) and abs(value) <= 1e305)


def _is_amount(value: Any) -> bool:
    return is_number(value) and (value is None or 0 <= value <= 1e15)


def _is_loss(value: Any) -> bool:
    return is_number(value) and value is not None and abs(value) <= 700


def _is_a(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _named(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


@dataclass(frozen=True)
class Shape:
    """What a row must be: it has all columns `needed`, and of those named in `columns` each that is there passes its check."""

    columns: Mapping[str, Check]
    needed: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    """Columns that are of no use without another one."""

    def holds(self, row: Any) -> bool:
        """Whether `row` is of this shape. Columns that it does not name may be anything."""
        return (
            isinstance(row, dict)
            and all(name in row for name in self.needed)
            and all(check(row[name]) for name, check in self.columns.items() if name in row)
            and all(other in row for name, other in self.beside.items() if name in row)
        )


_WHERE = dict.fromkeys(("step", "stage", "context_length", "tokens"), is_count)
_QUALITY = ("loss", "perplexity", "bits_per_base")
_VALIDATION = dict.fromkeys((f"validation_{name}" for name in _QUALITY), is_number)
METRICS = Shape(
    {
        **_WHERE,
        **_VALIDATION,
        **dict.fromkeys((*_QUALITY, "learning_rate", "gradient_norm", "loss_spike"), is_number),
        **dict.fromkeys(("tokens_per_second", "peak_memory_gib", "exchange_share", "input_wait_seconds"), _is_amount),
        **dict.fromkeys(("skipped", "passed_over"), _is_a(bool)),
        **dict.fromkeys(("mfu", "limit_share", "compute_seconds", "wait_seconds", "slowest_times"), _is_amount),
        "slowest_rank": is_count,
        "slow_ranks": lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    },
    needed=("step",),
    beside={"validation_loss": "context_length", "tokens_per_second": "tokens"},
)
"""Rows of metrics.jsonl: of a training step where they have a loss, of a validation where they have a validation loss."""
FAULTS = Shape(
    {"step": is_count, "rank": is_count, **dict.fromkeys(("time", "kind", "text", "seen_on"), _is_a(str))},
    needed=("step", "kind", "text"),
)
HOSTS_CHANGED = "hosts"
"""Kind of a row of faults.jsonl that is no fault: after one, a supervisor has chosen other hosts."""
MENDED = ("corrupt",)
"""Kinds of faults after which a run went on by itself."""
STARTS = Shape(
    {
        **dict.fromkeys(("step", "ranks", "threads"), is_count),
        **dict.fromkeys(("time", "device", "system", "launcher", "unit"), _is_a(str)),
        "hosts": _named(is_count),
        "versions": _named(_is_a(str)),
    }
)
"""Rows of environment.jsonl."""
SUMMARY = Shape(
    {**_WHERE, **_VALIDATION, "markov_losses": _named(_is_loss)},
    beside={"validation_loss": "context_length", "markov_losses": "context_length"},
)


@dataclass(frozen=True)
class Line:
    """A line of a file that is not blank, or a piece of one that is too long."""

    number: int
    """From 1."""
    text: bytes
    """With the newline, where there is one."""
    row: Row | None
    """None where it is not readable."""


def read_lines(file: Path, shape: Shape) -> Iterator[Line]:
    """The lines of a file; none where it is missing. Raises OSError where it is there and cannot be read."""
    if not file.is_file():
        return
    number, cut = 0, False
    with file.open("rb") as stream:
        while piece := stream.readline(LONGEST):
            begun, cut = cut, len(piece) == LONGEST and not piece.endswith(b"\n")
            number += not begun
            text = piece.strip(b"\0 \t\r\n")
            if begun or cut:
                yield Line(number, piece, None)
            elif text or b"\0" in piece:
                yield Line(number, piece, _row(text, shape))


def read_rows(file: Path, shape: Shape) -> list[Row]:
    """The readable rows of a file; none where it is missing or cannot be read."""
    try:
        return [line.row for line in read_lines(file, shape) if line.row is not None]
    except OSError:
        return []


def read_faults(file: Path) -> list[Row]:
    """The rows of faults.jsonl that tell of a run's end."""
    return [row for row in read_rows(file, FAULTS) if row["kind"] not in MENDED]


def read_summary(file: Path) -> Row | None:
    """summary.json; None where it is missing, empty where it is not readable."""
    if not file.is_file():
        return None
    found = read_json(file)
    return found if SUMMARY.holds(found) else {}


def read_json(file: Path) -> Any:
    """What a file of one JSON value holds; None where it is missing or not readable."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return _plain(_DECODER.decode(stream.read(LONGEST).decode("utf-8-sig")))
    except (OSError, ValueError, RecursionError):
        return None


def read_text(file: Path, last: int = LONGEST) -> str:
    """The `last` bytes of a file; empty where it is missing or cannot be read. What is not UTF-8 is replaced."""
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - last))
            return stream.read(last).decode("utf-8", errors="replace")
    except OSError:
        return ""


def training_time(steps: list[Row]) -> tuple[float, int]:
    """Seconds of the training steps among rows of metrics.jsonl, the wait for their data included, validations and
    checkpoints not; and the tokens of these steps."""
    seconds, tokens = 0.0, 0
    for row in steps:
        rate = row.get("tokens_per_second") or 0.0
        if rate > 1e-9 and row["tokens"] > tokens:
            seconds += (row["tokens"] - tokens) / rate + (row.get("input_wait_seconds") or 0.0)
            tokens = row["tokens"]
    return seconds, tokens


def _row(text: bytes, shape: Shape) -> Row | None:
    """None unless it is JSON of this shape."""
    try:
        row = _DECODER.decode(text.decode("utf-8-sig"))
        if b"\\u" not in text and shape.holds(row):  # the most, by far, and the rest is slower
            return row
        row = _plain(row)
    except (ValueError, RecursionError):
        return None
    return row if shape.holds(row) else None


_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def _plain(value: Any) -> Any:
    """Without what cannot be written again: NaN and infinity are None, half characters are question marks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return value
