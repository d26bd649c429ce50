"""Reads variants from a VCF, a BCF or a table with tabs, as text: what is not understood is carried through as it is.

    FILE (plain, gzip, bgzip; BCF by pysam) --lines--> header, then records, each with its columns

Coordinates are 0-based here; in the files they count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, need
from hyena_ds.genome.packed import blocks

Kind = Literal["VCF", "BCF", "TSV"]
MISSING = "name an existing VCF, BCF or TSV"
LONGEST_LINE = 1 << 28
"""Bytes: a cohort of a million genotypes fits."""
LONGEST_NUMBER = 18
NEEDED = ("chrom", "pos", "ref", "alt")
"""Columns of a TSV, in any order and in capitals or not."""
COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
INFO, FILTER = COLUMNS.index("INFO"), COLUMNS.index("FILTER")

SYMBOLIC, BREAKEND, STAR = "HDS_SYMBOLIC", "HDS_BREAKEND", "HDS_STAR"
NO_ALT, AMBIGUOUS, MISMATCH = "HDS_NO_ALT", "HDS_AMBIGUOUS", "HDS_REF_MISMATCH"
FILTERS = {
    SYMBOLIC: "Symbolic ALT, such as <DEL>: it says no bases",
    BREAKEND: "Breakend ALT",
    STAR: "ALT *: an allele that another record's deletion covers",
    NO_ALT: "No ALT",
    AMBIGUOUS: "REF or ALT with other letters than A C G T",
    MISMATCH: "REF is not what the FASTA has there; passed over by --skip-mismatch",
}
"""Why an ALT has no values."""
_BASES = re.compile("[ACGTacgt]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file of variants."""

    line: int
    """From 1; in a BCF the number of the record."""
    contig: str
    position: int
    identifier: str
    reference: str
    alternatives: tuple[str, ...]

    def problem(self, alternative: str) -> str | None:
        """The filter that says why there are no values of an ALT; None where there can be."""
        if alternative == "*":
            return STAR
        if alternative.startswith("<"):
            return SYMBOLIC
        if any(mark in alternative for mark in "[].") and alternative != ".":
            return BREAKEND
        if alternative in ("", "."):
            return NO_ALT
        plain = _BASES.fullmatch(self.reference) and _BASES.fullmatch(alternative)
        return None if plain else AMBIGUOUS


class VariantFile:
    """A file of variants; its header is read when it is opened, its records as often as they are asked for.

    Raises UserError where it is none, or has no records.
    """

    def __init__(self, path: Path, position_column: str = "pos"):
        """`position_column` names a TSV's column of positions."""
        self.path = path
        self.kind = _kind(path)
        self.header: list[str] = []
        """Lines of a VCF's header, the last one that of the columns; the one line of a TSV's."""
        for line in self._lines():
            if self.kind == "TSV" or line.startswith("#"):
                self.header.append(line)
            if self.kind == "TSV" or not line.startswith("##"):
                break
        self.names = self.header[-1].lstrip("#").split("\t") if self.header else []
        wanted = {**{name: name for name in NEEDED}, "pos": position_column.lower()} if self.kind == "TSV" else {}
        lower = [name.lower() for name in self.names]
        if self.kind == "TSV":
            for name in wanted.values():
                if lower.count(name) != 1:
                    raise UserError(
                        f"{path}: found {lower.count(name)} columns '{name}' in the first line, wanted one of each of "
                        f"{', '.join(wanted.values())}, separated by tabs; name another column of positions with "
                        "--position-column, or give a VCF"
                    )
            self._at = [lower.index(wanted[name]) for name in NEEDED]
        elif self.names[: len(COLUMNS)] != list(COLUMNS):
            raise UserError(
                f"{path}: found no line '#{' '.join(COLUMNS)}' (with tabs) before the records, wanted a VCF"
            )

    @property
    def alternative_column(self) -> str:
        """The name of a TSV's column of ALTs."""
        return self.names[self._at[NEEDED.index("alt")]]

    def records(self) -> Iterator[tuple[Record, list[str]]]:
        """Every record with its columns, in the order of the file."""
        found = False
        for line, text in self._records():
            found = True
            yield self._record(line, text)
        if not found:
            raise UserError(f"{self.path}: found no records, wanted at least one variant")

    def column(self, columns: list[str], name: str) -> str | None:
        """The value of a TSV's column, or of a key of a VCF's INFO; None where a record has none."""
        if self.kind == "TSV":
            value = columns[self.names.index(name)] if name in self.names else ""
            return value or None
        for field in columns[INFO].split(";"):
            key, equals, value = field.partition("=")
            if key == name:
                return value if equals else key
        return None

    def _records(self) -> Iterator[tuple[int, str]]:
        for line, text in enumerate(self._lines(), start=1):
            if line > len(self.header) and text and not (self.kind != "TSV" and text.startswith("#")):
                yield line, text

    def _record(self, line: int, text: str) -> tuple[Record, list[str]]:
        where = f"{self.path}:{line}"
        if self.kind == "TSV":
            columns = text.split("\t")
            if len(columns) != len(self.names):
                raise UserError(
                    f"{where}: found {len(columns)} columns, wanted the {len(self.names)} of the first line"
                )
            contig, position, reference, alternatives = (columns[at] for at in self._at)
            identifier = "."
        else:
            columns = text.split("\t", len(COLUMNS))
            if len(columns) < len(COLUMNS):
                raise UserError(
                    f"{where}: found {len(columns)} columns, wanted at least {len(COLUMNS)}: {' '.join(COLUMNS)}"
                )
            contig, position, identifier, reference, alternatives = columns[:5]
        if not (position.isascii() and position.isdecimal() and len(position) <= LONGEST_NUMBER):
            shown = in_one_line(position, MOST_QUOTED)
            raise UserError(f"{where}: found '{shown}' as a position, wanted a whole number that counts bases from 1")
        return Record(line, contig, int(position) - 1, identifier, reference, tuple(alternatives.split(","))), columns

    def _lines(self) -> Iterator[str]:
        return _bcf_lines(self.path) if self.kind == "BCF" else _text_lines(self.path)


def _kind(path: Path) -> Kind:
    for block in blocks(path, "VCF", MISSING):
        if block.startswith(b"BCF"):
            return "BCF"
        if b"\0" in block:
            raise UserError(f"{path}: found binary data, wanted a VCF, a BCF, or a table with tabs")
        return "VCF" if block.startswith((b"##fileformat=VCF", b"\xef\xbb\xbf##fileformat=VCF", b"#CHROM")) else "TSV"
    raise UserError(f"{path}: found an empty file, wanted a VCF, a BCF, or a table with tabs")


def _text_lines(path: Path) -> Iterator[str]:
    rest = b""
    for block in blocks(path, "VCF", MISSING):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise UserError(
                f"{path}: found a line of more than {LONGEST_LINE:,} bytes, wanted a VCF or a table with tabs"
            )
        for line in lines:
            yield _text(line)
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    """Bytes that are not UTF-8 come out as they went in."""
    return line.removesuffix(b"\r").removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _bcf_lines(path: Path) -> Iterator[str]:
    pysam: Any = need("pysam", "predict")
    pysam.set_verbosity(0)
    count = 0
    try:
        with pysam.VariantFile(str(path)) as file:
            yield from str(file.header).splitlines()
            for record in file:
                yield str(record).rstrip("\n")
                count += 1
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as BCF after record {count} ({error}); write it anew") from None
