"""Embeddings as files, beside the columns that say what each is of.

.parquet  a row a sequence: the columns, and `embedding`, a list of D float32
.h5ad     AnnData: X (sequences, D) float32, the columns as obs, what they were made with in uns["hyena_ds"]
.zarr     `embedding` (sequences, D), or of every base (bases of all sequences, D), and an array a column; of bases also
          `offsets` (sequences + 1): sequence n is embedding[offsets[n]:offsets[n + 1]], in reading direction

The same embeddings give the same bytes in all three.

n vectors of a part, D width.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = {".parquet": ("pyarrow", "predict"), ".zarr": ("zarr", "predict"), ".h5ad": ("anndata", "anndata")}
"""Forms of an output, and the library and the extra that each takes."""
_CHUNK = 1 << 20
"""Numbers of a chunk of a Zarr array: 4 MiB."""


def write_embeddings(
    path: Path,
    columns: pa.Table,
    values: Iterable[pa.FixedSizeListArray],
    width: int,
    lengths: Sequence[int] | None,
    about: Mapping[str, Any],
    work: Path,
) -> None:
    """Write vectors that come part by part, in the order of the rows of `columns`.

    `lengths` are bases of the rows where every base has a vector, else None; `about` goes into the file; `work` is a directory
    for what must not stay.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, columns, values, about)
    elif path.suffix == ".zarr":
        _write_zarr(path, columns, values, width, lengths, about)
    else:
        _write_anndata(path, columns, values, width, about, work / "x.bin")


def _write_parquet(
    path: Path, columns: pa.Table, values: Iterable[pa.FixedSizeListArray], about: Mapping[str, Any]
) -> None:
    import pyarrow.parquet as pq

    writer, done = None, 0
    try:
        for part in values:
            table = columns.slice(done, len(part)).append_column("embedding", part)
            table = table.replace_schema_metadata({"hyena_ds": json.dumps(about, sort_keys=True)})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            done += len(part)
    finally:
        if writer is not None:
            writer.close()


def _write_zarr(
    path: Path,
    columns: pa.Table,
    values: Iterable[pa.FixedSizeListArray],
    width: int,
    lengths: Sequence[int] | None,
    about: Mapping[str, Any],
) -> None:
    import zarr

    group = zarr.open_group(path, mode="w")
    group.attrs.update(about)
    total = len(columns) if lengths is None else sum(lengths)
    chunks = (min(total, max(1, _CHUNK // width)), width)
    array = group.create_array("embedding", shape=(total, width), chunks=chunks, dtype="float32")
    done = 0
    for part in values:
        array[done : done + len(part)] = _vectors(part)
        done += len(part)
    if lengths is not None:
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)))
        group.create_array("offsets", data=offsets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text of any length is in no final version of the format yet
        for name in columns.column_names:
            found = columns[name].to_numpy()
            if found.dtype != object:
                group.create_array(name, data=found)
                continue
            texts = group.create_array(name, shape=found.shape, dtype=str)
            texts[:] = _texts(found)


def _write_anndata(
    path: Path,
    columns: pa.Table,
    values: Iterable[pa.FixedSizeListArray],
    width: int,
    about: Mapping[str, Any],
    rows: Path,
) -> None:
    import anndata

    x_ND = np.memmap(rows, dtype=np.float32, mode="w+", shape=(len(columns), width))
    done = 0
    for part in values:
        x_ND[done : done + len(part)] = _vectors(part)
        done += len(part)
    obs = columns.to_pandas()
    obs.index = obs.index.astype(str)
    for name in columns.column_names:
        if obs[name].dtype == object:
            obs[name] = _texts(obs[name])
    anndata.AnnData(X=x_ND.view(np.ndarray), obs=obs, uns={"hyena_ds": dict(about)}).write_h5ad(path)


def _texts(values: Iterable[Any]) -> NDArray[np.object_]:
    """Text of each value; nothing for a missing one."""
    return np.array(["" if value is None else str(value) for value in values], dtype=object)


def _vectors(part: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """(n, D) of n vectors."""
    vectors_nD: NDArray[np.float32] = part.flatten().to_numpy().reshape(len(part), -1)
    return vectors_nD
