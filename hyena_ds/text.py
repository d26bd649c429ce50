"""Numbers, durations and tables as people write and read them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `3h50m`, `90s`, `1d` or `13800`. Raises ValueError for other forms, for nothing, and for infinity."""
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        seconds = float(text)
    else:
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(text)
        seconds = sum(float(match[unit]) * size for unit, size in _SECONDS.items() if match[unit])
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


def show_duration(seconds: float) -> str:
    """Seconds as their two largest units: 4.2 s, 45 s, 12m05s, 3h50m, 2d01h."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for (unit, size), (lower, below) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("m", 60)),
        (("m", 60), ("s", 1)),
    ):
        if whole >= size:
            return f"{whole // size:,}{unit}{whole % size // below:02d}{lower}"
    raise AssertionError(seconds)


def now() -> str:
    """Date and time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def number(value: float | None) -> str:
    """Three significant digits, thousands in groups; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def counted(count: int, what: str) -> str:
    """1 rank, 2 ranks."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def in_tokens(length: float) -> str:
    """A context length as 512, 8k or 1M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if length >= unit and length % unit == 0:
            return f"{length / unit:.0f}{name}"
    return f"{length:,.0f}"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """A line for each row, its columns as wide as their widest cell: on the left those in `left`, on the right the others.

    A row may be shorter than the others; it then has no part in the width of its own last column.
    """
    longest = max(map(len, rows), default=0)
    cells = [row if len(row) == longest else row[:-1] for row in rows]
    widths = [max((len(row[at]) for row in cells if at < len(row)), default=0) for at in range(longest)]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head, *body = ("".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in (titles, *rows))
    return [head, "|" + "---|" * len(titles), *body]
