"""What is to be embedded: regions of a FASTA, or the rows of a CSV, TSV or Parquet with a column `sequence`.

    FASTA, BED --------------------> regions of an indexed genome --------+
    table --checked row by row, once--> WORK/sequences.bin, rows.ipc ---+--> rows: ids of each, and columns about it

A table is read in batches, and its ids are laid out on the disk: what is in memory is a batch, and a line about each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.files.whole import aside, to_disk
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import IS_NUCLEOTIDE, letter_name
from hyena_ds.genome.tokenizer import reverse_complement
from hyena_ds.predict.windows import TOKENS, Region, Window, tokens

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_COLUMNS = ("sequence", "name", "label")
_ROWS_AT_ONCE = 256
_BLOCK = 1 << 26
"""Bytes of text that are read at once; no line may be longer."""
_IS_LETTER = np.zeros(256, dtype=bool)
for _byte in (*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)):
    _IS_LETTER[_byte] = True


@dataclass(frozen=True)
class Row:
    """One sequence as it is read, and where it comes from; a row of a table has the contig ""."""

    contig: str
    start: int
    end: int
    strand: str
    """+, -, or . for the mean of both."""
    name: str
    source: int
    """Number of the region or of the table's row."""

    @property
    def length(self) -> int:
        """Bases."""
        return self.end - self.start


class Sequences:
    """Rows of an input, in its order; with both strands, + before -."""

    def __init__(
        self, rows: list[Row], source: Genome | NDArray[np.uint8], ends: NDArray[np.int64], labels: Any = None
    ):
        """`source` is a genome, or the ids of all rows of a table one after another, of which row n ends at `ends[n]`."""
        self.rows, self._source, self._ends, self._labels = rows, source, ends, labels

    def ids(self, number: int, strand: str) -> NDArray[np.uint8]:
        """Ids of a row on + or -, in reading direction."""
        row = self.rows[number]
        if isinstance(self._source, Genome):
            region = Region(row.contig, row.start, row.end, strand)
            return tokens(self._source, region, Window(0, 0, row.length, 0))
        end = int(self._ends[row.source])
        ids_n = np.array(self._source[end - row.length : end])
        return ids_n if strand == "+" else reverse_complement(ids_n)

    def columns(self) -> pa.Table:
        """contig, start, end, strand, name and, where the input has one, label of all rows."""
        import pyarrow as pa

        types = {
            "contig": pa.string(),
            "start": pa.int64(),
            "end": pa.int64(),
            "strand": pa.string(),
            "name": pa.string(),
        }
        table = pa.table(
            {name: pa.array([getattr(row, name) for row in self.rows], kind) for name, kind in types.items()}
        )
        if self._labels is None:
            return table
        chosen = pa.array([row.source for row in self.rows], pa.int64())
        return table.append_column("label", self._labels.take(chosen))

    def check_lengths(self, source: Path, most: int, option: str) -> None:
        """Raise UserError, naming the first row that is empty or has more than `most` bases."""
        for number, row in enumerate(self.rows):
            if not row.length:
                raise UserError(f"{source}: {self._named(number)} has no bases, wanted at least 1; leave it out")
            if row.length > most:
                raise UserError(
                    f"{source}: {self._named(number)} has {row.length:,} bases, wanted at most {most:,}, {option}; cut it, or "
                    "embed regions of it (a BED with --regions)"
                )

    def _named(self, number: int) -> str:
        row = self.rows[number]
        what = f"{row.contig}:{row.start:,}-{row.end:,}" if row.contig else f"row {row.source + 1}"
        return f"{what} ({in_one_line(row.name, MOST_QUOTED)})" if row.name else what


def of_regions(genome: Genome, regions: list[Region], mean: bool) -> Sequences:
    """The regions as rows; with `mean` the pairs of strands that they come in are one row each."""
    rows = [
        Row(region.contig, region.start, region.end, "." if mean else region.strand, region.name, number)
        for number, region in enumerate(regions[:: 2 if mean else 1])
    ]
    return Sequences(rows, genome, np.zeros(0, dtype=np.int64))


def is_table(path: Path) -> bool:
    """Whether the name says that it is a table, else a FASTA."""
    return path.name.lower().endswith(TABLES)


def lay_out(source: Path, work: Path) -> None:
    """Check a table and write its ids, and the columns about its rows, to `work`. Raises UserError, naming the row."""
    import pyarrow as pa

    found = work / "rows.ipc"
    if found.exists():
        return
    lengths: list[int] = []
    others: dict[str, list[Any]] = {}
    with aside(work / "sequences.bin") as unfinished, unfinished.open("wb") as file:
        for batch in _batches(source):
            for text in batch.column("sequence").to_pylist():
                ids_n = _checked(f"{source}: row {len(lengths) + 1}", text)
                lengths.append(len(ids_n))
                file.write(ids_n.tobytes())
            for name in _COLUMNS[1:]:
                if name in batch.schema.names:
                    others.setdefault(name, []).append(batch.column(name))
        to_disk(file)
    if not lengths:
        raise UserError(f"{source}: found no rows, wanted sequences")
    columns: dict[str, Any] = {name: pa.chunked_array(pieces) for name, pieces in others.items()}
    if "name" in columns:
        columns["name"] = columns["name"].cast(pa.string())
    if "label" in columns and not source.name.lower().endswith(".parquet"):
        columns["label"] = _as_numbers(columns["label"])
    with aside(found) as unfinished, unfinished.open("wb") as file:
        table = pa.table({"length": lengths, **columns})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        to_disk(file)


def of_table(work: Path, strands: str) -> Sequences:
    """The rows of a table that was laid out in `work`, on every strand of `strands`: +, -, both or mean."""
    import pyarrow as pa

    with pa.ipc.open_file(str(work / "rows.ipc")) as reader:
        table = reader.read_all()
    lengths = table["length"].to_pylist()
    names = table["name"].to_pylist() if "name" in table.column_names else [""] * len(lengths)
    each = {"both": "+-", "mean": "."}.get(strands, strands)
    rows = [
        Row("", 0, length, strand, name or "", number)
        for number, (length, name) in enumerate(zip(lengths, names, strict=True))
        for strand in each
    ]
    ids = np.memmap(work / "sequences.bin", dtype=np.uint8, mode="r")
    labels = table["label"] if "label" in table.column_names else None
    return Sequences(rows, ids, np.cumsum(lengths, dtype=np.int64), labels)


def _checked(where: str, text: str | None) -> NDArray[np.uint8]:
    """Ids of a sequence."""
    if not text:
        raise UserError(f"{where}: found an empty sequence, wanted bases; leave the row out")
    letters_n = np.frombuffer(text.encode(), dtype=np.uint8)
    strange = letters_n[~_IS_LETTER[letters_n]]
    if len(strange):
        raise UserError(
            f"{where}: found '{letter_name(int(strange[0]))}' in the sequence, wanted letters; correct the table"
        )
    others = int(np.count_nonzero(~IS_NUCLEOTIDE[letters_n]))
    if 2 * others > len(letters_n):
        raise UserError(
            f"{where}: the sequence looks like protein: {others:,} of its {len(letters_n):,} letters are not A C G T U N; "
            "wanted nucleotides"
        )
    return TOKENS[letters_n]


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    """Batches of the columns that count, text as text. Raises UserError for what is no such table."""
    import pyarrow as pa

    if not source.stat().st_size:
        raise UserError(f"{source}: found an empty file, wanted a table with a column sequence")
    kind = "Parquet" if source.name.lower().endswith(".parquet") else "text"
    read = _parquet if kind == "Parquet" else _text
    try:
        yield from read(source)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        problem = "; ".join(str(error).split("\n"))
        if "straddling object" in problem:
            problem = f"a line has more than {_BLOCK:,} bytes"
        raise UserError(
            f"{source}: cannot be read as a table in {kind} ({in_one_line(problem, MOST_QUOTED)}); write it anew"
        ) from None


def _wanted(source: Path, names: list[str]) -> list[str]:
    if "sequence" not in names:
        shown = in_one_line(", ".join(names), MOST_QUOTED)
        raise UserError(f"{source}: found no column 'sequence' among {shown}; name a column of the table so")
    for name in _COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{source}: found the column '{name}' twice, wanted one; rename the other")
    return [name for name in _COLUMNS if name in names]


def _text(source: Path) -> Iterator[pa.RecordBatch]:
    """Batches of a CSV or TSV, plain or gzip, with every column as text."""
    import pyarrow as pa
    from pyarrow import csv

    reading = csv.ReadOptions(block_size=_BLOCK, use_threads=False)
    parsing = csv.ParseOptions(delimiter="\t" if ".tsv" in source.name.lower() else ",")
    with csv.open_csv(source, reading, parsing) as head:
        wanted = _wanted(source, head.schema.names)
    converting = csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()))
    with csv.open_csv(source, reading, parsing, converting) as reader:
        yield from reader


def _parquet(source: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, pre_buffer=False) as file:
        schema = file.schema_arrow
        wanted = _wanted(source, schema.names)
        for name in wanted:
            kind = schema.field(name).type
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            is_text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
            is_number = pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_boolean(plain)
            if not is_text and (name == "sequence" or not is_number):
                raise UserError(
                    f"{source}: found the column '{name}' of type {in_one_line(str(kind), MOST_QUOTED)}, wanted "
                    f"{'text' if name == 'sequence' else 'text or numbers'}"
                )
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted):
            yield pa.record_batch([_decoded(batch.column(name)) for name in wanted], wanted)


def _decoded(column: pa.Array) -> pa.Array:
    import pyarrow as pa

    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return plain.cast(pa.string()) if pa.types.is_large_string(plain.type) else plain


def _as_numbers(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels that are all whole numbers, written as such, or all numbers, as numbers."""
    import pyarrow as pa

    try:
        whole = labels.cast(pa.int64())
        if whole.cast(pa.string()).equals(labels):
            return whole
        return labels.cast(pa.float64())
    except pa.ArrowInvalid:
        try:
            return labels.cast(pa.float64())
        except pa.ArrowInvalid:
            return labels
