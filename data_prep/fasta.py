"""The genome: opened, checked and indexed once, then read by region.

    FASTA (plain) ----link---+
    FASTA (gzip, bgzip) --unpack--+--> WORK/genome.fa --scan: names, letters--> RecordScan
                                          |--pyfaidx--> WORK/genome.fai --> Genome.read(record, start, end)

Nothing is ever written beside the user's file. Coordinates are in bases, 0-based and half-open.
"""

from __future__ import annotations

import gzip
import mmap
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pyfaidx import Faidx, FastaIndexingError, FetchError
from tqdm import tqdm

from data_prep import letters
from data_prep.letters import Bytes, Counts
from hyena_ds.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file; without it the file was cut at the border of a block."""
COPY_BYTES = 1 << 22
_CONTROL = [byte for byte in range(32) if byte not in b"\t\r\n"] + [127]


@dataclass(frozen=True)
class RecordScan:
    """One record of the FASTA: its name, and how often each byte occurs in its sequence."""

    name: str
    counts: Counts


class Genome:
    """Random access to the bases of an indexed plain FASTA; opens in any process."""

    def __init__(self, path: Path, index: Path):
        self.path, self.index = path, index
        self._faidx = Faidx(str(path), indexname=str(index), as_raw=True, rebuild=False)

    def lengths(self) -> dict[str, int]:
        """Bases of each record, in the order of the file."""
        return {name: record.rlen for name, record in self._faidx.index.items()}

    def read(self, record: str, start: int, end: int) -> Bytes:
        """Letters `[start, end)` of a record, as they stand in the file."""
        if end <= start:
            return np.zeros(0, dtype=np.uint8)
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
        self._faidx.close()


def open_genome(source: Path, work: Path) -> tuple[Genome, list[RecordScan]]:
    """Check the FASTA at `source`, with a plain copy (when it is packed) and an index in the directory `work`.

    Raises UserError when the file is missing, empty, cut short, binary, protein, without header, or not indexable.
    """
    plain, index = work / "genome.fa", work / "genome.fai"
    _plain_copy(source, plain)
    scans = scan_records(source, plain)
    if not index.exists():
        unfinished = work / "genome.fai.tmp"
        unfinished.unlink(missing_ok=True)
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
        os.replace(unfinished, index)
    return Genome(plain, index), scans


def check_readable(source: Path) -> None:
    """Raise UserError unless `source` is a file that holds something."""
    try:
        with source.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{source}: found an empty file, wanted a FASTA")
    except FileNotFoundError:
        raise UserError(
            f"{source}: no such file; name an existing FASTA, or fetch one with `hyena-ds prep download`"
        ) from None
    except OSError as error:
        raise UserError(f"{source}: cannot read the FASTA ({error.strerror}); name a readable file") from None


def _plain_copy(source: Path, plain: Path) -> None:
    check_readable(source)
    if plain.exists() or plain.is_symlink():
        return  # of an interrupted run on the same bytes
    with source.open("rb") as packed:
        magic = packed.read(18)
        packed.seek(0)
        if not magic.startswith(GZIP_MAGIC):
            plain.symlink_to(source.resolve())
            return
        unfinished = plain.with_suffix(".tmp")
        try:
            with unfinished.open("wb") as copy:
                _unpack(packed, copy, source.stat().st_size)
                copy.flush()
                os.fsync(copy.fileno())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{source}: the gzip stream is cut short or damaged ({str(error).rstrip('.')}); fetch the file again"
            ) from None
        if magic[12:14] == b"BC":
            packed.seek(-min(len(BGZF_END), source.stat().st_size), os.SEEK_END)
            if packed.read() != BGZF_END:
                raise UserError(f"{source}: the bgzip file has no end block, so it was cut short; fetch the file again")
    os.replace(unfinished, plain)


def _unpack(packed: BinaryIO, copy: BinaryIO, size: int) -> None:
    with gzip.GzipFile(fileobj=packed) as stream, tqdm(total=size, unit="B", unit_scale=True, desc="unpack") as bar:
        while block := stream.read(COPY_BYTES):
            copy.write(block)
            bar.update(min(packed.tell(), size) - bar.n)


def scan_records(source: Path, plain: Path) -> list[RecordScan]:
    """Names and letters of every record of `plain`; UserError names `source` and what is wrong."""
    size = plain.stat().st_size
    if size == 0:
        raise UserError(f"{source}: found nothing in the gzip stream, wanted a FASTA")
    with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        _check_text(source, text[: 1 << 16])
        scans: list[RecordScan] = []
        seen: dict[str, int] = {}
        header = 0 if text[:1] == b">" else text.find(b"\n>") + 1
        while header < size:
            name_end = text.find(b"\n", header)
            name_end = size if name_end < 0 else name_end
            following = text.find(b"\n>", name_end)
            following = size if following < 0 else following + 1
            name = _record_name(source, text[header:name_end], len(scans) + 1)
            if name in seen:
                raise UserError(
                    f"{source}: found the record name '{name}' twice (records {seen[name]} and {len(scans) + 1}); "
                    "rename one of them"
                )
            seen[name] = len(scans) + 1
            counts = np.zeros(256, dtype=np.int64)
            for start in range(name_end, following, COPY_BYTES):
                block = text[start : min(start + COPY_BYTES, following)]
                counts += letters.count_letters(np.frombuffer(block, dtype=np.uint8))
            _check_letters(source, name, counts)
            scans.append(RecordScan(name, counts))
            header = following
    if not any(scan.counts.any() for scan in scans):
        raise UserError(f"{source}: found {len(scans)} record(s) without a base, wanted sequences")
    return scans


def _check_text(source: Path, beginning: bytes) -> None:
    if any(byte in beginning for byte in _CONTROL):
        raise UserError(f"{source}: found binary data, wanted the text of a FASTA (plain, gzip or bgzip)")
    lines = (line for line in beginning.split(b"\n") if line.strip() and not line.startswith(b";"))
    if not next(lines, b"").startswith(b">"):
        raise UserError(f"{source}: found no '>' header before the first letters, wanted a FASTA")


def _record_name(source: Path, header: bytes, number: int) -> str:
    try:
        words = header[1:].decode("utf-8").split()
    except UnicodeDecodeError:
        raise UserError(
            f"{source}: the header of record {number} is not UTF-8; the file is binary or damaged"
        ) from None
    if not words:
        raise UserError(f"{source}: found no name in the header of record {number}, wanted '>name'")
    return words[0]


def _check_letters(source: Path, name: str, counts: Counts) -> None:
    """Clears the line ends from `counts`, then refuses what cannot be a nucleotide record."""
    counts[[ord("\n"), ord("\r")]] = 0
    odd = counts[_CONTROL].sum() + counts[128:].sum()
    if odd:
        raise UserError(f"{source}: record '{name}' holds {odd} bytes that are not text; the file is binary or damaged")
    total, strange = int(counts.sum()), int(counts[~letters.IS_NUCLEOTIDE].sum())
    if 2 * strange > total:
        raise UserError(
            f"{source}: record '{name}' looks like protein: {strange} of its {total} letters are not "
            "A C G T U N; name a nucleotide FASTA"
        )
