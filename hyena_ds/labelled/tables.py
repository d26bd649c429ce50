"""Rows of a CSV, TSV or Parquet as text, column by column, whatever the file is packed with.

    FILE --magic bytes--> gzip, xz, zstd or plain --lines--> csv --> Table
         --PAR1---------> pyarrow ------------------------------> Table

A file is believed in nothing: a pack that is cut short, a line without end, binary data and rows of other widths are refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, need
from hyena_ds.genome.packed import check_file

LONGEST_LINE = 1 << 28
"""Characters of a line: a sequence is far shorter."""
MOST_TEXT = 1 << 35
"""Characters of a file, unpacked."""
PACKED = (".gz", ".bgz", ".xz", ".zst")
"""What names of packed files end in."""
MISSING = "name an existing file of labelled sequences"
_GZIP, _XZ, _ZSTD, _PARQUET = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PAR1"


@dataclass(frozen=True)
class Table:
    """Named columns of one length, all as text."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    """Line of the file that each row ends on, from 1; in a Parquet the number of the row."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.lines)

    def where(self, row: int) -> str:
        """What a message calls a row."""
        return f"{self.path}:{self.lines[row]}"

    def named(self, *names: str) -> str | None:
        """The first of the names that is a column."""
        return next((name for name in names if name in self.columns), None)

    def shown(self) -> str:
        """The names of the columns, for a message."""
        return in_one_line(", ".join(self.columns), MOST_QUOTED)


def bare_name(path: Path) -> str:
    """The name of a file without the ending that says what it is packed with."""
    return next((path.name[: -len(end)] for end in PACKED if path.name.lower().endswith(end)), path.name)


@contextmanager
def text_of(path: Path) -> Iterator[IO[str]]:
    """The text of a file, unpacked. Raises UserError for what is missing, empty, damaged, binary or not UTF-8."""
    check_file(path, "table", MISSING)
    if path.is_dir():
        raise UserError(f"{path}: found a directory, wanted a file of labelled sequences")
    if not path.stat().st_size:
        raise UserError(f"{path}: found an empty file, wanted labelled sequences")
    try:
        with path.open("rb") as file, _unpacked(file) as stream:
            yield cast(IO[str], io.TextIOWrapper(cast(IO[bytes], stream), encoding="utf-8-sig", newline=""))
    except UnicodeDecodeError:
        raise UserError(f"{path}: found binary data, wanted the text of a table or a FASTA in UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"{path}: the pack is cut short or damaged ({problem}); fetch the file again") from None
    except OSError as error:
        problem = in_one_line(str(error.strerror or error), MOST_QUOTED)
        raise UserError(f"{path}: cannot be read ({problem}); fetch the file again") from None


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, unpacked, with their ends. Raises UserError as `text_of` does, and for a line without end."""
    with text_of(path) as text:
        total = 0
        while line := text.readline(LONGEST_LINE + 1):
            total += len(line)
            if len(line) > LONGEST_LINE or total > MOST_TEXT:
                what = (
                    f"a line of more than {LONGEST_LINE:,}" if len(line) > LONGEST_LINE else f"more than {MOST_TEXT:,}"
                )
                raise UserError(f"{path}: found {what} characters, wanted labelled sequences; is the pack a bomb?")
            if "\0" in line:
                raise UserError(f"{path}: found binary data, wanted the text of a table or a FASTA in UTF-8")
            yield line


def read_table(path: Path) -> Table:
    """All rows of a table with a line of names. Raises UserError, naming the line, for what is none."""
    check_file(path, "table", MISSING)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_PARQUET)) == _PARQUET:
                return _parquet(path)
    tabs = bare_name(path).lower().endswith((".tsv", ".txt"))
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(lines_of(path), delimiter="\t" if tabs else ",", strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if not any(names):
            raise UserError(f"{path}: found no line of column names, wanted sequence,label")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UserError(f"{path}: found the column '{min(twice)}' twice, wanted one; rename the other")
        found: list[list[str]] = [[] for _ in names]
        lines: list[int] = []
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{path}:{rows.line_num}: found {len(row)} columns, wanted the {len(names)} of the first line "
                    f"({in_one_line(', '.join(names), MOST_QUOTED)}); correct the line"
                )
            for column, value in zip(found, row, strict=True):
                column.append(value)
            lines.append(rows.line_num)
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: cannot be read as a table ({error}); write it anew") from None
    return _checked(Table(path, dict(zip(names, found, strict=True)), lines))


def _checked(table: Table) -> Table:
    if not len(table):
        raise UserError(f"{table.path}: found no rows below the column names, wanted labelled sequences")
    return table


def _parquet(path: Path) -> Table:
    pa: Any = need("pyarrow", "predict")
    pq: Any = need("pyarrow.parquet", "predict")
    try:
        found = pq.read_table(path, use_threads=False)
        columns = {name: found.column(name).to_pylist() for name in found.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:  # a text that is not UTF-8 is a ValueError
        problem = in_one_line(str(error), MOST_QUOTED)
        raise UserError(f"{path}: cannot be read as a table in Parquet ({problem}); write it anew") from None
    text = {name: [_text(value) for value in values] for name, values in columns.items()}
    return _checked(Table(path, text, list(range(1, found.num_rows + 1))))


def _text(value: Any) -> str:
    """A value as a CSV would have it; of a list its elements with semicolons between."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(map(_text, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


@contextmanager
def _unpacked(file: IO[bytes]) -> Iterator[Any]:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(_GZIP):
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream
    elif magic.startswith(_XZ):
        with lzma.LZMAFile(file) as stream:
            yield stream
    elif magic.startswith(_ZSTD):
        pa: Any = need("pyarrow", "predict")
        with pa.CompressedInputStream(file, "zstd") as stream:
            yield io.BufferedReader(cast(Any, stream))
    else:
        yield file
