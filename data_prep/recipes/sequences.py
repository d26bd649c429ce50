"""Reads windows of a FASTA, on either strand, in capitals, for annotations whose contigs may be called differently.

FASTA --open_genome, in a directory of its own--> Reference --window(contig, start, end, strand)--> letters A C G T N
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_prep.config import LimitsConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.letters import IS_AMBIGUOUS, IS_PLAIN, Bytes

_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")


class Reference:
    """A genome whose contigs are found with and without `chr` before their names."""

    def __init__(self, source: Path, genome: Genome):
        self.source = source
        self.lengths = genome.lengths()
        self._genome = genome
        capital = np.arange(256, dtype=np.uint8)
        capital[ord("a") : ord("z") + 1] -= 32
        capital[~IS_PLAIN] = ord("N")
        self._capital = capital

    def contig(self, name: str) -> str | None:
        """What the FASTA calls a contig; None where it has none of this name."""
        for choice in (name, f"chr{name}", name.removeprefix("chr")):
            if choice in self.lengths:
                return choice
        return None

    def letters(self, contig: str, start: int, end: int) -> Bytes:
        """Bases `[start, end)` of the forward strand, in capitals; IUPAC codes are N. Raises UserError for other letters."""
        raw = self._genome.read(contig, start, end)
        odd = np.flatnonzero(~(IS_PLAIN | IS_AMBIGUOUS)[raw])
        if len(odd):
            place = start + int(odd[0])
            raise UserError(
                f"{self.source}: found the letter '{chr(raw[odd[0]])}' at {contig}:{place}, wanted A C G T N or IUPAC codes"
            )
        return self._capital[raw]

    def window(self, contig: str, start: int, end: int, strand: str) -> str | None:
        """Bases of a strand, its 5' end first; None where the contig does not have all of them."""
        if start < 0 or end > self.lengths[contig]:
            return None
        return on_strand(self.letters(contig, start, end).tobytes(), strand)


@contextmanager
def opened(source: Path, work: Path) -> Iterator[Reference]:
    """The genome of a FASTA; `work` is a directory for its index, and for a copy where the FASTA is packed."""
    work.mkdir(parents=True)
    genome = open_genome(source, work, LimitsConfig().fasta_bytes).genome
    try:
        yield Reference(source, genome)
    finally:
        genome.close()


def on_strand(forward: bytes, strand: str) -> str:
    """Capitals of the forward strand as the strand has them, its 5' end first."""
    return (forward.translate(_COMPLEMENT)[::-1] if strand == "-" else forward).decode("ascii")


def most_contig(reference: Reference, names: set[str], what: Path) -> dict[str, str]:
    """The FASTA's name of each contig that it has. Raises UserError where it has none of them."""
    found = {name: contig for name in sorted(names) if (contig := reference.contig(name)) is not None}
    if not found:
        theirs, ours = ", ".join(sorted(names)[:4]), ", ".join([*reference.lengths][:4])
        raise UserError(f"{what}: lies on the contigs {theirs}, none of which is in {reference.source} ({ours})")
    return found
