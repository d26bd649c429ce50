"""Labelled regions and variants that are cut from a genome."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.bed import read_named, some
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.tokenizer import decode, encode, reverse_complement
from hyena_ds.genome.variant_file import VariantFile
from hyena_ds.labelled.sets import Interval

_LARGEST_FASTA, _LARGEST_BED = 1 << 40, 1 << 30
"""Bytes."""


class GenomeReader:
    """The bases of intervals; the FASTA is opened when the first is asked for, with an index that goes at the end."""

    def __init__(self, path: Path | None):
        """`path` is None where the user has named no genome."""
        self.path = path
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._genome: Genome | None = None
        self._lengths: dict[str, int] = {}

    def __enter__(self) -> GenomeReader:
        """Nothing is opened yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the index."""
        if self._genome is not None:
            self._genome.close()
        if self._work is not None:
            self._work.cleanup()

    @property
    def given(self) -> bool:
        """Whether there is a genome."""
        return self.path is not None

    def lengths(self, what: str) -> dict[str, int]:
        """Bases of each contig; `what` needs them. Raises UserError where no genome was named, or it is none."""
        self._open(what)
        return self._lengths

    def regions(self, bed: Path) -> Iterator[tuple[Interval, str]]:
        """The intervals of a BED and their names. Raises UserError where a line has none."""
        for number, line in enumerate(read_named(bed, self.lengths(str(bed)), _LARGEST_BED), start=1):
            if not line.name:
                raise UserError(f"{bed}: region {number} has no name, wanted its label in column four")
            yield Interval(line.chromosome, line.start, line.end, line.strand), line.name

    def read(self, place: Interval, where: str) -> str:
        """The letters of an interval in its reading direction. Raises UserError where the genome does not have it."""
        genome = self._open(where)
        length = self._lengths.get(place.contig)
        if length is None:
            raise UserError(
                f"{where}: found the contig '{in_one_line(place.contig, MOST_QUOTED)}', which {self.path} does not have "
                f"({some(self._lengths)}); name the genome of the intervals"
            )
        if place.end > length:
            raise UserError(
                f"{where}: found the end {place.end:,} past the end of {place.contig} ({length:,} bases); are the intervals of "
                "another assembly?"
            )
        text = genome.read(place.contig, place.start, place.end).tobytes().decode("latin-1")
        return decode(reverse_complement(encode(text.upper()))).replace("?", "N") if place.strand == "-" else text

    def _open(self, what: str) -> Genome:
        if self._genome is None:
            if self.path is None:
                raise UserError(f"{what}: found intervals without a genome, wanted the FASTA that they are cut from")
            self._work = tempfile.TemporaryDirectory(prefix="hyena-ds-")
            self._genome = open_genome(self.path, Path(self._work.name), _LARGEST_FASTA).genome
            self._lengths = self._genome.lengths()
        return self._genome


def variant_windows(
    path: Path, bases: GenomeReader, label: str, window: int
) -> Iterator[tuple[str, Interval, str, str]]:
    """(«file:line», interval of the genome, letters with ALT in place, label) of every ALT of a VCF.

    A window has `window` letters, the variant begins at its middle; it is shorter at the ends of a contig. `label` is a key of
    INFO, in these letters or in capitals. Raises UserError for a record without it, an ALT without bases, and a REF that is
    not the genome's.
    """
    file = VariantFile(path)
    for record, columns in file.records():
        where = f"{path}:{record.line}"
        text = file.column(columns, label) or file.column(columns, label.upper())
        if not text:
            raise UserError(f"{where}: found no '{label}' in INFO, wanted the variant's label; leave the record out")
        for alternative in record.alternatives:
            if record.problem(alternative) is not None:
                shown = in_one_line(f"{record.reference}>{alternative}", MOST_QUOTED)
                raise UserError(f"{where}: found {shown}, wanted REF and ALT of A C G T; leave the record out")
            after = record.position + len(record.reference)
            length = bases.lengths(where).get(record.contig, after)
            start = max(0, record.position - window // 2)
            end = min(length, max(after, after + window - window // 2 - len(alternative)))
            place = Interval(record.contig, start, end, "+")
            letters = bases.read(place, where)
            at = record.position - start
            reference = letters[at : at + len(record.reference)]
            if reference.upper() != record.reference.upper():
                raise UserError(
                    f"{where}: found the REF {in_one_line(record.reference, 40)}, wanted {in_one_line(reference, 40)}, which the "
                    "genome has there; is the VCF of another assembly?"
                )
            yield where, place, (letters[:at] + alternative + letters[at + len(reference) :])[:window], text
