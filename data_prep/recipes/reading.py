"""Reads what others have annotated: tables with a header, and GTF; plain or gzip.

    TSV or CSV --columns by name, in any order--> rows        GTF --features, gene_id, transcript_id--> rows

Coordinates come out 0-based and half-open, whatever the file has: a GTF counts from 1 and includes its ends, a table as the
caller says.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.packed import blocks

LONGEST_LINE = 1 << 20
Coordinates = Literal["bed", "ensembl"]
"""bed: 0-based and half-open. ensembl: 1-based, ends included."""
_STRANDS = {"+": "+", "-": "-", "1": "+", "-1": "-", "+1": "+"}
_CONTIG = ("chrom", "chr", "contig", "chromosome", "seqname", "seqnames")
_EXON_COLUMNS = {
    "contig": _CONTIG,
    "start": ("start",),
    "end": ("end",),
    "strand": ("strand",),
    "gene": ("gene_id", "ensgene", "gene"),
    "transcript": ("transcript_id", "transcript"),
}
_GENE_COLUMNS = {
    "contig": _CONTIG,
    "start": ("start",),
    "end": ("end",),
    "strand": ("strand",),
    "gene": ("gene_id", "ensgene", "gene"),
    "biotype": ("biotype", "gene_biotype", "gene_type"),
}
_ATTRIBUTE = re.compile(r'(\w+) "([^"]*)"')


@dataclass(frozen=True, slots=True)
class Feature:
    """An exon or a gene of an annotation."""

    contig: str
    start: int
    end: int
    strand: str
    gene: str
    detail: str
    """The transcript of an exon, the biotype of a gene."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: its values by the names that were asked for."""

    where: str
    """FILE:LINE."""
    values: Mapping[str, str]


def read_exons(path: Path, coordinates: Coordinates) -> list[Feature]:
    """Exons of a GTF, or of a table with a contig, start, end, strand, gene_id and transcript_id. Raises UserError."""
    return _read_features(path, coordinates, "exon", _EXON_COLUMNS, "transcript")


def read_genes(path: Path, coordinates: Coordinates) -> list[Feature]:
    """Genes of a GTF, or of a table with a contig, start, end, strand, gene_id and biotype. Raises UserError."""
    return _read_features(path, coordinates, "gene", _GENE_COLUMNS, "biotype")


def read_table(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    """The rows of a table whose first line names its columns, with tabs or commas between; `wanted` are the columns that are
    needed, each with the names it may have. Raises UserError."""
    lines = iter(read_lines(path))
    number, header = next(lines, (1, ""))
    separator = "\t" if "\t" in header else ","
    names = [name.strip().lower() for name in _cells(header, separator)]
    places = {}
    for name, choices in wanted.items():
        found = [names.index(choice.lower()) for choice in choices if choice.lower() in names]
        if not found:
            shown = ", ".join(names[:12]) or "none"
            raise UserError(
                f"{path}:{number}: found the columns {in_one_line(shown, MOST_QUOTED)}, wanted one called "
                f"{' or '.join(choices)}"
            )
        places[name] = found[0]
    for number, line in lines:
        cells = _cells(line, separator)
        if len(cells) != len(names):
            raise UserError(f"{path}:{number}: found {len(cells)} columns, wanted the {len(names)} of the header")
        yield Row(f"{path}:{number}", {name: cells[place].strip() for name, place in places.items()})


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are neither blank nor a comment, without their ends. Raises UserError."""
    rest = b""
    number = 0
    for block in itertools.chain(blocks(path, "annotation", "name an existing file"), [None]):
        pieces = (rest + (block or b"")).split(b"\n")
        rest = pieces.pop() if block is not None else b""
        if len(rest) > LONGEST_LINE or any(len(piece) > LONGEST_LINE for piece in pieces):
            raise UserError(f"{path}: found a line of more than {LONGEST_LINE:,} letters, wanted a table or GTF")
        for piece in pieces:
            number += 1
            try:
                line = piece.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
            except UnicodeDecodeError:
                line = "\0"
            if "\0" in line:
                raise UserError(f"{path}:{number}: found binary data, wanted text (plain or gzip)")
            if line.strip() and not line.startswith("#"):
                yield number, line


def whole_number(where: str, text: str) -> int:
    """A coordinate. Raises UserError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise UserError(f"{where}: found '{in_one_line(text, MOST_QUOTED)}' as a coordinate, wanted a whole number")
    return int(text)


def _read_features(
    path: Path, coordinates: Coordinates, kind: str, columns: Mapping[str, tuple[str, ...]], detail: str
) -> list[Feature]:
    rows = _gtf_rows(path, kind, detail) if _is_gtf(path) else read_table(path, columns)
    coordinates = "ensembl" if _is_gtf(path) else coordinates
    found = []
    for row in rows:
        values, where = row.values, row.where
        start, end = whole_number(where, values["start"]), whole_number(where, values["end"])
        start -= coordinates == "ensembl"
        if not 0 <= start < end:
            how = "from 1, the end included" if coordinates == "ensembl" else "0-based, half-open"
            raise UserError(
                f"{where}: found start {values['start']} and end {values['end']}, wanted the start first ({how}; "
                "--coordinates says how the table counts)"
            )
        strand = _STRANDS.get(values["strand"])
        if strand is None:
            raise UserError(
                f"{where}: found the strand '{in_one_line(values['strand'], MOST_QUOTED)}', wanted + or - or 1 or -1"
            )
        if not values["gene"] or not values[detail]:
            raise UserError(f"{where}: found no gene or no {detail}, wanted both")
        found.append(Feature(values["contig"], start, end, strand, values["gene"], values[detail]))
    if not found:
        raise UserError(f"{path}: found no {kind}, wanted at least one")
    return found


def _is_gtf(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".gtf", ".gff", ".gff2", ".gff3"))


def _gtf_rows(path: Path, kind: str, detail: str) -> Iterator[Row]:
    for number, line in read_lines(path):
        where, cells = f"{path}:{number}", line.split("\t")
        if len(cells) != 9:
            raise UserError(f"{where}: found {len(cells)} columns, wanted the 9 of a GTF")
        if cells[2] != kind:
            continue
        attributes = dict(_ATTRIBUTE.findall(cells[8]))
        values = {"contig": cells[0], "start": cells[3], "end": cells[4], "strand": cells[6]}
        values["gene"] = attributes.get("gene_id", "")
        choices = ("transcript_id",) if detail == "transcript" else ("gene_type", "gene_biotype")
        values[detail] = next((attributes[name] for name in choices if name in attributes), "")
        if not values["gene"]:
            raise UserError(
                f'{where}: found no gene_id "..." among the attributes, wanted a GTF (a GFF3 has other ones: convert it)'
            )
        yield Row(where, values)


def _cells(line: str, separator: str) -> list[str]:
    return line.split("\t") if separator == "\t" else next(csv.reader([line]))
