"""Reads a BED of named regions, or of `chromosome start end split`, and finds what its splits share.

    FILE.bed or FILE.bed.gz --read_bed--> intervals with their lines --find_leaks--> bases that two splits claim
                            --read_named--> regions with names and strands

Coordinates are in bases, 0-based and half-open, as BED has them.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

from hyena_ds.errors import UserError
from hyena_ds.genome.packed import blocks
from hyena_ds.genome.splits import SPLITS

LONGEST_LINE = 1 << 16
LONGEST_NUMBER = 18
"""Digits of a coordinate: what 64 bits hold."""
MOST_LEAKS = 1_000_000
"""More pairs of regions than anybody could look through: a BED is refused that has them."""
MISSING = "correct 'splits.bed' in the config"
STRANDS = ("+", "-", ".")
GUARD = ("test", "valid", "train")
"""Where two splits overlap the earlier one keeps the bases: what is held out stays whole."""


@dataclass(frozen=True, slots=True)
class Region:
    """Bases `[start, end)` of a chromosome that belong to a split."""

    chromosome: str
    start: int
    end: int
    split: str


@dataclass(frozen=True, slots=True)
class Interval(Region):
    """One line of the BED."""

    line: int


@dataclass(frozen=True, slots=True)
class Named:
    """One line of a BED that names regions: bases `[start, end)` of a chromosome, a name or "", and + or - or . for none."""

    chromosome: str
    start: int
    end: int
    name: str
    strand: str


@dataclass(frozen=True, slots=True)
class Leak:
    """Bases that intervals of two splits share: `kept` has them under `overlap: trim`, `trimmed` loses them."""

    chromosome: str
    start: int
    end: int
    kept: Interval
    trimmed: Interval

    def describe(self) -> str:
        """One row of the leak report."""
        return (
            f"{self.chromosome}:{self.start}-{self.end} ({self.end - self.start} bases): "
            f"{self.trimmed.split} {self.trimmed.start}-{self.trimmed.end} (line {self.trimmed.line}) overlaps "
            f"{self.kept.split} {self.kept.start}-{self.kept.end} (line {self.kept.line})"
        )


def read_bed(path: Path, lengths: Mapping[str, int], names: Mapping[str, str], limit: int) -> list[Interval]:
    """Every interval of the file; `lengths` are the bases of each chromosome, `names` maps column four to splits.

    Raises UserError with `file:line` for a line that is not four columns within a known chromosome, and for a file that
    has more than `limit` bytes.
    """
    intervals = []
    for number, columns in _rows(path, limit, MISSING):
        where = f"{path}:{number}"
        if len(columns) != 4:
            raise UserError(f"{where}: found {len(columns)} columns, wanted 4: chromosome start end split")
        start, end = _coordinates(where, columns, lengths)
        split = names.get(columns[3], columns[3])
        if split not in SPLITS:
            raise UserError(
                f"{where}: found the split '{columns[3]}', wanted {' or '.join((*names, *SPLITS))}; "
                "map other names with 'splits.bed_names'"
            )
        intervals.append(Interval(columns[0], start, end, split, number))
    if not intervals:
        raise UserError(f"{path}: found no regions, wanted lines of 'chromosome start end split'")
    return intervals


def read_named(path: Path, lengths: Mapping[str, int], limit: int) -> list[Named]:
    """Every line of a BED of three columns or more, in the order of the file; `lengths` are the bases of each chromosome.

    Raises UserError with `file:line` for a line that is none within a known chromosome, and for a file that has more than
    `limit` bytes.
    """
    found = []
    for number, columns in _rows(path, limit, "name an existing BED"):
        where = f"{path}:{number}"
        if len(columns) < 3:
            raise UserError(f"{where}: found {len(columns)} columns, wanted at least 3: chromosome start end")
        start, end = _coordinates(where, columns, lengths)
        strand = columns[5] if len(columns) > 5 else "."
        if strand not in STRANDS:
            raise UserError(f"{where}: found the strand '{strand}', wanted + or - or .")
        found.append(Named(columns[0], start, end, columns[3] if len(columns) > 3 else "", strand))
    if not found:
        raise UserError(f"{path}: found no regions, wanted lines of 'chromosome start end'")
    return found


def _rows(path: Path, limit: int, missing: str) -> Iterator[tuple[int, list[str]]]:
    """(number, columns) of the lines that are neither blank nor a comment."""
    for number, line in enumerate(_lines(path, limit, missing), start=1):
        columns = line.split()
        if columns and not columns[0].startswith("#") and columns[0] not in ("track", "browser"):
            yield number, columns


def _lines(path: Path, limit: int, missing: str) -> Iterator[str]:
    """The lines of the text, one at a time, whatever ends them."""
    data = bytearray()
    for block in blocks(path, "BED", missing):
        data += block
        if len(data) > limit:
            raise UserError(
                f"{path}: found more than {limit:,} bytes of BED; if it is one and no archive that unpacks without end, "
                "raise 'limits.bed_mib' in the config"
            )
    if 0 in data:
        raise _no_text(path)
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig")
    try:
        while line := text.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise UserError(f"{path}: found a line of more than {LONGEST_LINE:,} letters, wanted a BED")
            yield line
    except UnicodeDecodeError:
        raise _no_text(path) from None


def _no_text(path: Path) -> UserError:
    return UserError(f"{path}: found binary data, wanted the text of a BED (plain or gzip)")


def _coordinates(where: str, columns: list[str], lengths: Mapping[str, int]) -> tuple[int, int]:
    """Start and end of a line, which lie within its chromosome."""
    chromosome, start_text, end_text = columns[:3]
    for text in (start_text, end_text):
        if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER):
            raise UserError(f"{where}: found '{text}' as a coordinate, wanted a whole number of bases, 0 or more")
    start, end = int(start_text), int(end_text)
    if chromosome not in lengths:
        raise UserError(
            f"{where}: found the chromosome '{chromosome}', which the FASTA does not have ({some(lengths)})"
        )
    if start >= end:
        raise UserError(f"{where}: found start {start} and end {end}, wanted the start below the end")
    if end > lengths[chromosome]:
        raise UserError(
            f"{where}: found the end {end} past the end of {chromosome} ({lengths[chromosome]} bases); "
            "is the BED of another assembly?"
        )
    return start, end


def some(names: Collection[str]) -> str:
    """The first few of the names that there are, for messages."""
    return f"it has {', '.join([*names][:4])}{' …' if len(names) > 4 else ''}"


def find_leaks(intervals: list[Interval]) -> list[Leak]:
    """Every pair of intervals of different splits that share bases, by place; not all where they exceed MOST_LEAKS."""
    leaks: list[Leak] = []
    # Of each split, those that may reach into what comes, the first to end on top.
    open_: dict[str, list[tuple[int, int, Interval]]] = {}
    chromosome = ""
    for number, new in enumerate(sorted(intervals, key=_place)):
        if new.chromosome != chromosome:
            chromosome, open_ = new.chromosome, {split: [] for split in SPLITS}
        olds: list[Interval] = []
        for split, heap in open_.items():
            while heap and heap[0][0] <= new.start:
                heappop(heap)
            if split != new.split:
                olds += [old for _, _, old in heap]
        for old in sorted(olds, key=_place):
            kept, trimmed = sorted((old, new), key=lambda i: GUARD.index(i.split))
            leaks.append(Leak(new.chromosome, new.start, min(old.end, new.end), kept, trimmed))
        if len(leaks) > MOST_LEAKS:
            break
        heappush(open_[new.split], (new.end, number, new))
    return leaks


def _place(interval: Interval) -> tuple[str, int, int, int]:
    return interval.chromosome, interval.start, interval.end, interval.line
