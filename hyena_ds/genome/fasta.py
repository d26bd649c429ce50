"""The genome: checked, counted and indexed once, then read by region.

    FASTA (plain or packed) --scan: names, letters--> RecordScans
              |--plain and tidy: a link; else a tidy copy--> WORK/genome.fa
                                                                 |--pyfaidx--> WORK/genome.fai --> Genome.read(record, start, end)

Nothing is ever written beside the user's file. Coordinates are in bases, 0-based and half-open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, to_disk, write_whole
from hyena_ds.genome.letters import Bytes
from hyena_ds.genome.packed import COPY_BYTES, blocks, check_file, is_packed
from hyena_ds.genome.scan import RecordScan, Scanner

_MISSING = "name an existing FASTA, or fetch one with `hyena-ds prep download`"


class Genome:
    """Random access to the bases of an indexed plain FASTA; opens in any process."""

    def __init__(self, path: Path, index: Path):
        from pyfaidx import Faidx  # not before: most commands and every rank that trains read no FASTA

        self.path, self.index = path, index
        self._faidx = Faidx(str(path), indexname=str(index), as_raw=True, rebuild=False)

    def lengths(self) -> dict[str, int]:
        """Bases of each record, in the order of the file."""
        return {name: record.rlen for name, record in self._faidx.index.items()}

    def read(self, record: str, start: int, end: int) -> Bytes:
        """Letters `[start, end)` of a record, as they stand in the file."""
        if end <= start:
            return np.zeros(0, dtype=np.uint8)
        from pyfaidx import FetchError

        try:
            text: str = self._faidx.fetch(record, start + 1, end)
        except FetchError as error:
            raise UserError(f"{self.path}: cannot read {record}:{start}-{end} ({error}); check the FASTA") from None
        if len(text) != end - start:
            raise UserError(
                f"{self.path}: found {len(text)} letters at {record}:{start}-{end}; it changed while in use"
            )
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)

    def close(self) -> None:
        """Close the FASTA file."""
        self._faidx.close()


@dataclass(frozen=True)
class Opened:
    """A genome that may be read, and what reading it through has shown."""

    genome: Genome
    records: list[RecordScan]
    blanks: int
    """Blanks and tabs within sequences that were left out."""
    renewed: bool
    """Whether the directory held a copy of an earlier version, whose coordinates counted what is left out now."""


def open_genome(source: Path, work: Path, limit: int) -> Opened:
    """Check the FASTA at `source`, of `limit` bytes at most, with a tidy copy (where it needs one) and an index in `work`.

    Raises UserError when the file is missing, empty, cut short, binary, protein, without header, or not indexable.
    """
    plain, index, note = work / "genome.fa", work / "genome.fai", work / "genome.json"
    check_readable(source)
    resumed = plain.exists()
    if resumed and note.exists():
        scanner = Scanner(source, limit)
        with plain.open("rb") as file:
            for _ in _tidy(scanner, iter(partial(file.read, COPY_BYTES), b"")):
                pass
        blanks, changed = int(json.loads(note.read_text(encoding="utf-8"))["blanks"]), False
    else:
        index.unlink(missing_ok=True)
        scanner = _lay_out(source, plain, limit)
        blanks, changed = scanner.blanks, scanner.changed
    if not index.exists():
        _write_index(source, plain, index)
    genome = Genome(plain, index)
    if genome.lengths() != {record.name: record.bases for record in scanner.records}:
        raise UserError(f"{source}: cannot be indexed (its records are not read alike twice); write it anew")
    write_whole(note, json.dumps({"blanks": blanks}) + "\n")
    return Opened(genome, scanner.records, blanks, resumed and changed)


def check_readable(source: Path) -> None:
    """Raise UserError unless `source` is a file that holds something."""
    check_file(source, "FASTA", _MISSING)
    if not source.stat().st_size and source.is_file():
        raise UserError(f"{source}: found an empty file, wanted a FASTA")


def _lay_out(source: Path, plain: Path, limit: int) -> Scanner:
    """Make `plain` what pyfaidx can read: the source itself where it is plain and tidy, else a copy of its tidy text."""
    scanner = Scanner(source, limit)
    with aside(plain) as unfinished:
        if not is_packed(source):
            with closing(blocks(source, "FASTA", _MISSING)) as pieces:
                for _ in _tidy(scanner, pieces):
                    pass
            if not scanner.changed:
                unfinished.symlink_to(source.resolve())
                return scanner
            scanner = Scanner(source, limit)
        with unfinished.open("wb") as copy, closing(blocks(source, "FASTA", _MISSING, progress=True)) as pieces:
            copy.writelines(_tidy(scanner, pieces))
            to_disk(copy)
    return scanner


def _tidy(scanner: Scanner, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for block in pieces:
        yield scanner.feed(block)
    yield scanner.finish()


def _write_index(source: Path, plain: Path, index: Path) -> None:
    from pyfaidx import Faidx, FastaIndexingError

    with aside(index) as unfinished:
        try:
            Faidx(str(plain), indexname=str(unfinished), as_raw=True).close()
        except (FastaIndexingError, ValueError) as error:
            problem = " ".join(str(error).split()).replace(str(plain), "the file").rstrip(".")
            raise UserError(
                f"{source}: cannot be indexed ({problem}); give every line of a record the same length"
            ) from None
        # pyfaidx takes an index that is older than its FASTA for stale, and a user's file may come from the future.
        newest = max(unfinished.stat().st_mtime_ns, plain.stat().st_mtime_ns)
        os.utime(unfinished, ns=(newest, newest))
