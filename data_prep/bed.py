"""Reads a BED of `chromosome start end split` and finds what its splits share.

    FILE.bed or FILE.bed.gz --read_bed--> intervals with their lines --find_leaks--> bases that two splits claim

Coordinates are in bases, 0-based and half-open, as BED has them.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.data.shards import SPLITS
from hyena_ds.errors import UserError

GUARD = ("test", "valid", "train")
"""Where two splits overlap the earlier one keeps the bases: what is held out stays whole."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of the BED."""

    chromosome: str
    start: int
    end: int
    split: str
    line: int


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


def read_bed(path: Path, lengths: Mapping[str, int], names: Mapping[str, str]) -> list[Interval]:
    """Every interval of the file; `lengths` are the bases of each chromosome, `names` maps column four to splits.

    Raises UserError with `file:line` for a line that is not four columns within a known chromosome.
    """
    intervals = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        columns = line.split()
        if not columns or columns[0].startswith("#") or columns[0] in ("track", "browser"):
            continue
        intervals.append(_interval(f"{path}:{number}", number, columns, lengths, names))
    if not intervals:
        raise UserError(f"{path}: found no regions, wanted lines of 'chromosome start end split'")
    return intervals


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such BED; correct 'splits.bed' in the config") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path}: the gzip stream is cut short or damaged; fetch the BED again") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: found binary data, wanted the text of a BED (plain or gzip)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the BED ({error.strerror}); name a readable file") from None


def _interval(
    where: str, line: int, columns: list[str], lengths: Mapping[str, int], names: Mapping[str, str]
) -> Interval:
    if len(columns) != 4:
        raise UserError(f"{where}: found {len(columns)} columns, wanted 4: chromosome start end split")
    chromosome, start_text, end_text, name = columns
    for text in (start_text, end_text):
        if not (text.isascii() and text.isdecimal()):
            raise UserError(f"{where}: found '{text}' as a coordinate, wanted a whole number of bases, 0 or more")
    start, end = int(start_text), int(end_text)
    if chromosome not in lengths:
        raise UserError(
            f"{where}: found the chromosome '{chromosome}', which the FASTA does not have ({_some(lengths)})"
        )
    if start >= end:
        raise UserError(f"{where}: found start {start} and end {end}, wanted the start below the end")
    if end > lengths[chromosome]:
        raise UserError(
            f"{where}: found the end {end} past the end of {chromosome} ({lengths[chromosome]} bases); "
            "is the BED of another assembly?"
        )
    split = names.get(name, name)
    if split not in SPLITS:
        raise UserError(
            f"{where}: found the split '{name}', wanted {' or '.join((*names, *SPLITS))}; "
            "map other names with 'splits.bed_names'"
        )
    return Interval(chromosome, start, end, split, line)


def _some(lengths: Mapping[str, int]) -> str:
    shown = list(lengths)[:4]
    return f"it has {', '.join(shown)}{' …' if len(lengths) > len(shown) else ''}"


def find_leaks(intervals: list[Interval]) -> list[Leak]:
    """Every pair of intervals of different splits that share bases, by place."""
    leaks: list[Leak] = []
    open_intervals: list[Interval] = []
    for new in sorted(intervals, key=lambda i: (i.chromosome, i.start, i.end, i.line)):
        open_intervals = [old for old in open_intervals if old.chromosome == new.chromosome and old.end > new.start]
        for old in open_intervals:
            if old.split != new.split:
                kept, trimmed = sorted((old, new), key=lambda i: GUARD.index(i.split))
                leaks.append(Leak(new.chromosome, new.start, min(old.end, new.end), kept, trimmed))
        open_intervals.append(new)
    return leaks
