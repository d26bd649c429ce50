"""Rows as Parquet or as text with tabs, by the end of the file's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_AT_ONCE = 1 << 16
"""Rows of a row group."""


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows that all have the columns of the first, which is there: .parquet, or a .tsv with a line of names."""
    if path.suffix == ".tsv":
        with path.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                if not number:
                    file.write("\t".join(row) + "\n")
                file.write("\t".join(_text(value) for value in row.values()) + "\n")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for some in _chunks(iter(rows)):
            table = pa.Table.from_pylist(some, None if writer is None else writer.schema)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, _AT_ONCE)):
        yield some


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else str(value)
