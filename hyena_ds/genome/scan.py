"""Reads a FASTA once, block by block: checks it, counts its letters, and leaves out what is neither header nor base.

    blocks --lines end in \\n--> headers: names --+--> RecordScans
                             --> letters: counts -+--> the same text, tidy

Tidy text has no byte order mark, nothing before its first header, no blank line and no blank within a sequence, and
ends its lines in \\n. Of text that is tidy not a byte is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyena_ds.errors import UserError
from hyena_ds.genome import letters
from hyena_ds.genome.letters import Counts

LONGEST_NAME = 255
"""Bytes of the name of a record, and of an assembly."""
_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t"
_CONTROL = [byte for byte in range(32) if byte not in b"\t\r\n"] + [127]
_NUMBERED = re.compile(rb"\n[ \t]*[0-9]+[ \t]")
"""A line that begins with its number, as GenBank has them."""
_NO_TEXT = np.array([*_CONTROL, *range(128, 256)])
_LONGEST_START = 1 << 16
"""Bytes before the first header."""
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class RecordScan:
    """One record of the FASTA."""

    name: str
    bases: int
    """Its length."""
    others: dict[str, int]
    """Letters that are neither A C G T N nor IUPAC codes -> occurrences."""


class Scanner:
    """The state between two blocks of one FASTA; `source` is its name in messages, `limit` the bytes it may have."""

    def __init__(self, source: Path, limit: int):
        self.source, self.limit = source, limit
        self.records: list[RecordScan] = []
        self.blanks = 0
        """Blanks and tabs within sequences, at the ends of lines for instance."""
        self._taken = self._given = 0
        self._ends_changed = False
        self._held = b""
        """The end of what came, where what follows it decides what it is."""
        self._begun = False
        """Whether the first header was met."""
        self._fresh = True
        """Whether what was given ends with a whole line."""
        self._seen: dict[str, int] = {}
        self._name = ""
        self._counts: Counts = np.zeros(256, dtype=np.int64)
        self._bases = 0

    @property
    def changed(self) -> bool:
        """Whether the tidy text is another one than what came."""
        return self._ends_changed or self._taken != self._given

    def feed(self, block: bytes) -> bytes:
        """The tidy text of the next block. Raises UserError, naming the source, for what cannot be a genome."""
        self._taken += len(block)
        if self._taken > self.limit:
            raise UserError(
                f"{self.source}: found more than {self.limit:,} bytes of FASTA; if it is a genome and no archive that "
                "unpacks without end, raise 'limits.fasta_gib' in the config"
            )
        return self._tidy(block, last=False)

    def finish(self) -> bytes:
        """The rest of the tidy text, after the last block."""
        if not self._taken:
            raise UserError(f"{self.source}: found nothing in the gzip stream, wanted a FASTA")
        rest = self._tidy(b"", last=True)
        if not self._begun:
            raise self._no_header()
        self._end_record()
        if not self._bases:
            raise UserError(f"{self.source}: found {len(self.records)} record(s) without a base, wanted sequences")
        return rest

    def _tidy(self, block: bytes, last: bool) -> bytes:
        text, self._held = self._held + block, b""
        if not last and text.endswith(b"\r"):
            text, self._held = text[:-1], b"\r"
        if b"\r" in text:
            self._ends_changed = True
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._begun:
            text = self._begin(text, last)
        line = text.rfind(b"\n")
        if self._begun and not last and text[line : line + 2] in (b"\n", b"\n>"):
            text, self._held = text[:line], text[line:] + self._held  # it may become a header
        given = b"".join(self._pieces(text, last))
        self._given += len(given)
        if self._held.startswith(b"\n>"):
            self._end_record()
            self._check_length(self._held[2:].rstrip(b"\r"))
        return given

    def _begin(self, text: bytes, last: bool) -> bytes:
        """The text from the line above the first header on; nothing while there is none."""
        if any(byte in text[:_LONGEST_START] for byte in _CONTROL):
            raise UserError(f"{self.source}: found binary data, wanted the text of a FASTA (plain, gzip or bgzip)")
        start = text.removeprefix(_BOM)
        header = 0 if start.startswith(b">") else start.find(b"\n>") + 1
        found = start.startswith(b">") or header > 0
        before = start[:header] if found else start
        whole = before if found or last else before[: before.rfind(b"\n") + 1]
        if any(line.strip() and not line.startswith(b";") for line in whole.split(b"\n")):
            raise self._no_header()
        if len(before) > _LONGEST_START:
            raise self._no_header()
        if not found:
            self._held = text + self._held
            return b""
        self._begun = True
        return b"\n" + start[header:]

    def _no_header(self) -> UserError:
        return UserError(f"{self.source}: found no '>' header before the first letters, wanted a FASTA")

    def _pieces(self, text: bytes, last: bool) -> Iterator[bytes]:
        """Tidy text of whole lines, of which the last may be broken if it is no header."""
        *whole, end = text.split(b"\n>")
        sequence, *records = [*(piece + b"\n" for piece in whole), end]
        yield self._letters(sequence)
        for record in records:
            header, newline, sequence = record.partition(b"\n")
            self._ends_changed |= last and not newline
            self._end_record()
            yield self._begin_record(header)
            yield self._letters(sequence)

    def _check_length(self, header: bytes) -> None:
        if len(header) > _LONGEST_HEADER:
            raise UserError(
                f"{self.source}: the header of record {len(self.records) + 1} has more than {_LONGEST_HEADER:,} bytes; "
                "the file is binary or damaged"
            )

    def _begin_record(self, header: bytes) -> bytes:
        self._check_length(header)
        self._fresh = True
        number = len(self.records) + 1
        self._name = self._record_name(header, number)
        if self._name in self._seen:
            raise UserError(
                f"{self.source}: found the record name '{self._name}' twice (records {self._seen[self._name]} and "
                f"{number}); rename one of them"
            )
        self._seen[self._name] = number
        return b">" + header + b"\n"

    def _record_name(self, header: bytes, number: int) -> str:
        try:
            words = header.decode("utf-8").split()
        except UnicodeDecodeError:
            raise UserError(
                f"{self.source}: the header of record {number} is not UTF-8; the file is binary or damaged"
            ) from None
        if not words:
            raise UserError(f"{self.source}: found no name in the header of record {number}, wanted '>name'")
        if not words[0].isprintable():
            raise UserError(f"{self.source}: the name of record {number} holds control characters; rename it")
        if len(words[0].encode()) > LONGEST_NAME:
            raise UserError(
                f"{self.source}: the name of record {number} has {len(words[0].encode()):,} bytes, wanted at most "
                f"{LONGEST_NAME}; rename it"
            )
        return words[0]

    def _letters(self, text: bytes) -> bytes:
        """Count the letters of a piece of a sequence; the piece without blanks and without empty lines."""
        line = b"\n" if self._fresh else b""
        kept = text.translate(None, _BLANKS)
        if len(kept) < len(text) and _NUMBERED.search(line + text):
            raise self._no_sequence("a line that begins with a number, as GenBank has them")
        self.blanks += len(text) - len(kept)
        if b"\n\n" in kept:
            kept = re.sub(rb"\n\n+", b"\n", kept)
        if self._fresh:
            kept = kept.removeprefix(b"\n")
        if not kept:
            return b""
        if b"\n;" in line + kept:
            raise self._no_sequence("a line that begins with ';', a comment")
        if b">" in kept:
            raise self._no_sequence("a '>' within a line: a header that lost the end of the line above it")
        self._fresh = kept.endswith(b"\n")
        self._counts += letters.count_letters(np.frombuffer(kept, dtype=np.uint8))
        odd = int(self._counts[_NO_TEXT].sum())
        if odd:
            raise UserError(
                f"{self.source}: record '{self._name}' holds {odd} bytes that are not text; the file is binary or damaged"
            )
        return kept

    def _no_sequence(self, found: str) -> UserError:
        return UserError(f"{self.source}: record '{self._name}' has {found}, wanted bases; correct the FASTA")

    def _end_record(self) -> None:
        """Refuses a record that cannot be of nucleotides, and keeps what is asked about it later."""
        if not self._name:
            return
        counts = self._counts
        counts[ord("\n")] = 0
        total, strange = int(counts.sum()), int(counts[~letters.IS_NUCLEOTIDE].sum())
        if 2 * strange > total:
            raise UserError(
                f"{self.source}: record '{self._name}' looks like protein: {strange} of its {total} letters are not "
                "A C G T U N; name a nucleotide FASTA"
            )
        self._bases += total
        self.records.append(RecordScan(self._name, total, letters.named_counts(counts, letters.IS_OTHER)))
        self._counts = np.zeros(256, dtype=np.int64)
        self._name = ""
