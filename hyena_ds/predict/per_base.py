"""The log-probability of every base as Zarr, BigWig or Parquet.

.zarr     an array STRAND/CONTIG of the contig's length, NaN where no base was scored; contig names percent-encoded
.bw       one value a scored base
.parquet  a row a scored base: contig, position (0-based), strand, log_probability
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hyena_ds.predict.windows import Region

Values = NDArray[np.float32]
_CHUNK = 1 << 18


def write_per_base(
    path: Path, lengths: Mapping[str, int], regions: list[Region], values: Iterable[tuple[int, Values]], mean: bool
) -> None:
    """Write values that come window by window, in reading direction, with the number of their region.

    With `mean` regions come in pairs, + before -, and a base gets the mean of the values that it has.
    """
    whole = _regions(regions, values)
    tracks = _means(whole) if mean else ((region, region.strand, values_n) for region, values_n in whole)
    {".zarr": _write_zarr, ".bw": _write_bigwig, ".parquet": _write_parquet}[path.suffix](path, lengths, tracks)


Tracks = Iterator[tuple["Region", str, Values]]
"""Region, strand and values in the order of the genome."""


def _regions(regions: list[Region], values: Iterable[tuple[int, Values]]) -> Iterator[tuple[Region, Values]]:
    """Each region with its values, in the order of the genome."""
    pieces: list[Values] = []
    current = 0
    for number, piece in values:
        if number != current:
            yield regions[current], _joined(regions[current], pieces)
            pieces, current = [], number
        pieces.append(piece)
    yield regions[current], _joined(regions[current], pieces)


def _joined(region: Region, pieces: list[Values]) -> Values:
    values_n = np.concatenate(pieces)
    return values_n if region.strand == "+" else values_n[::-1]


def _means(whole: Iterator[tuple[Region, Values]]) -> Tracks:
    for (region, forward_n), (_, reverse_n) in zip(whole, whole, strict=True):
        both_2n = np.stack((forward_n, reverse_n))
        counts_n = np.count_nonzero(~np.isnan(both_2n), axis=0)
        sums_n = np.nansum(both_2n, axis=0)
        yield region, ".", np.where(counts_n, sums_n / np.maximum(counts_n, 1), np.nan).astype(np.float32)


def _write_zarr(path: Path, lengths: Mapping[str, int], tracks: Tracks) -> None:
    import zarr

    group = zarr.open_group(path, mode="w")
    group.attrs["what"] = "log-probability of each base in nats, after the bases before it in reading direction"
    arrays = {}
    for region, strand, values_n in tracks:
        name = f"{ {'+': 'forward', '-': 'reverse', '.': 'mean'}[strand] }/{quote(region.contig, safe='')}"
        if name not in arrays:
            shape = (lengths[region.contig],)
            arrays[name] = group.create_array(
                name, shape=shape, chunks=(min(_CHUNK, shape[0]),), dtype="float32", fill_value=np.nan
            )
        arrays[name][region.start : region.end] = values_n


def _write_bigwig(path: Path, lengths: Mapping[str, int], tracks: Tracks) -> None:
    import pybigtools

    order = {contig: number for number, contig in enumerate(sorted(lengths))}
    ordered = sorted(tracks, key=lambda track: (order[track[0].contig], track[0].start))

    def entries() -> Iterator[tuple[str, int, int, float]]:
        for region, _, values_n in ordered:
            for at in np.flatnonzero(~np.isnan(values_n)).tolist():
                yield region.contig, region.start + at, region.start + at + 1, float(values_n[at])

    writer = pybigtools.open(str(path), "w")
    writer.write(dict(lengths), entries())


def _write_parquet(path: Path, lengths: Mapping[str, int], tracks: Tracks) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("contig", pa.string()), ("position", pa.int64()), ("strand", pa.string()), ("log_probability", pa.float32())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for region, strand, values_n in tracks:
            there = np.flatnonzero(~np.isnan(values_n))
            contigs, strands = ([each] * len(there) for each in (region.contig, strand))
            writer.write_table(pa.table([contigs, there + region.start, strands, values_n[there]], schema))
