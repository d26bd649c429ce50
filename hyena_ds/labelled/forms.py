"""Labelled sequences as a FASTA, with the label, and perhaps the place, in the header: >chr9:69170345-69170945|1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.labelled.sets import Interval
from hyena_ds.labelled.tables import lines_of

TABLES = (".csv", ".tsv", ".txt", ".parquet")
FASTA = (".fa", ".fasta", ".fna")
_PLACE = re.compile(r"(?P<contig>[^\s:|]+):(?P<start>\d{1,18})-(?P<end>\d{1,18})(?:\((?P<strand>[+-])\))?(?=[\s|]|$)")


def fasta_records(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line of the header, header without its mark, letters) of every record. Raises UserError for what is no FASTA."""
    header, first, pieces = "", 0, list[str]()
    for number, line in enumerate(lines_of(path), start=1):
        text = line.strip()
        if text.startswith(">"):
            if first:
                yield first, header, "".join(pieces)
            header, first, pieces = text[1:].strip(), number, []
        elif text and not first:
            raise UserError(f"{path}:{number}: found no '>' header before the first letters, wanted a FASTA")
        else:
            pieces.append(text)
    if not first:
        raise UserError(f"{path}: found no records, wanted a FASTA of labelled sequences")
    yield first, header, "".join(pieces)


def header_of(header: str, where: str, labelled: bool) -> tuple[str, Interval | None]:
    """(the text after the last bar, or "" where none is wanted; the place that the header begins with, if it does)."""
    _, bar, label = header.rpartition("|")
    if labelled and not (bar and label.strip()):
        shown = in_one_line(header, MOST_QUOTED)
        raise UserError(f"{where}: found the header '{shown}', wanted a label at its end, as in '>name|1'")
    place = _PLACE.match(header)
    if place is None or int(place["start"]) >= int(place["end"]):
        return label.strip(), None
    return label.strip(), Interval(place["contig"], int(place["start"]), int(place["end"]), place["strand"] or ".")
