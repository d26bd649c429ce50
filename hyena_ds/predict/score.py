"""`hyena-ds score`: how likely a model finds the bases of regions, each after those before it.

    FASTA, BED --> windows --log-probabilities--> parts --> a row a region, and a value a base where that is asked for

A base counts unless it is the first of its region, N or unknown. Log-likelihoods are sums in nats over all columns of the
head, as the loss in training; bits per base are their mean in bits, with the sign turned.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.limits import check_count, whole_number
from hyena_ds.errors import UserError, need, say
from hyena_ds.genome import tokenizer
from hyena_ds.genome.fasta import Genome, check_readable
from hyena_ds.genome.packed import check_file
from hyena_ds.predict.options import add_assembly, add_options, check_output, options_of
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.tables import write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from hyena_ds.predict.predictor import Predictor
    from hyena_ds.predict.session import Session
    from hyena_ds.predict.windows import Region, Window

STRANDS = ("+", "-", "both", "mean")
_PER_BASE = (".zarr", ".bw", ".parquet")
_COLUMNS = ("contig", "start", "end", "strand", "log_likelihood", "scored", "bits_per_base", "name")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds score`; `run` is a function of the parsed arguments."""
    add_options(parser, "table of a row a region: .parquet or .tsv")
    add_assembly(parser)
    parser.add_argument("fasta", metavar="FASTA", help="genome or sequences, plain or gzip")
    parser.add_argument("--regions", metavar="BED", help="score these regions (default: every whole record)")
    parser.add_argument(
        "--strand",
        choices=STRANDS,
        help="strand that is read; both: a row each; mean: a row for the mean of both (default: the BED's, else +)",
    )
    parser.add_argument(
        "--stride",
        type=whole_number,
        metavar="N",
        help="bases that a further window of a long region adds (default: half the context)",
    )
    parser.add_argument(
        "--per-base", metavar="PATH", help="also the log-probability of every base: .zarr, .bw or .parquet"
    )
    parser.set_defaults(run=_score)


def _score(parsed: argparse.Namespace) -> int:
    options = options_of(parsed, (".parquet", ".tsv"))
    per_base = None if parsed.per_base is None else Path(parsed.per_base)
    if per_base is not None:
        check_output(per_base, _PER_BASE, "--per-base")
        if per_base.absolute() == options.output.absolute():
            raise UserError(f"--per-base: found '{per_base}', which is the --output too, wanted another name")
        need(
            "zarr" if per_base.suffix == ".zarr" else "pybigtools" if per_base.suffix == ".bw" else "pyarrow", "predict"
        )
        if per_base.suffix == ".bw" and parsed.strand == "both":
            raise UserError("--per-base: a BigWig has one value a base; name one strand, or --strand mean")
    need("pyarrow", "predict")
    fasta, bed = Path(parsed.fasta), None if parsed.regions is None else Path(parsed.regions)
    check_readable(fasta)
    if bed is not None:
        check_file(bed, "BED", "name an existing BED")
    from hyena_ds.predict.session import start

    return start(
        parsed,
        options,
        lambda session: _Scoring(session, fasta, bed, parsed.strand, parsed.stride, per_base, parsed.assembly).run(),
    )


@dataclass
class _Sums:
    """What the windows of a region add up to."""

    log_likelihood: float = 0.0
    scored: int = 0
    ignored: int = 0

    def row(self, region: Region, strand: str) -> dict[str, Any]:
        bits = -self.log_likelihood / self.scored / math.log(2) if self.scored else math.nan
        values = (region.contig, region.start, region.end, strand, self.log_likelihood, self.scored, bits, region.name)
        return dict(zip(_COLUMNS, values, strict=True))


class _Scoring:
    """One scoring: what is scored, in which parts, and what comes of it."""

    def __init__(
        self,
        session: Session,
        fasta: Path,
        bed: Path | None,
        strand: str | None,
        stride: int | None,
        per_base: Path | None,
        assembly: str | None,
    ):
        self._session, self._options, self._per_base = session, session.options, per_base
        self._fasta, self._bed, self._strand, self._assembly = fasta, bed, strand, assembly
        self._predictor = session.load()
        self._context = session.context(self._predictor)
        check_count("--stride", stride, self._context)
        self._stride = stride or max(1, self._context // 2)
        self._parts = Parts(self._options.output)

    def run(self) -> bool:
        """Whether all is done. Collective."""
        return self._session.in_parts(self._parts, self._settings(), self._work, self._per_base)

    def _work(self) -> bool:
        from hyena_ds.predict.held_out import whole_regions
        from hyena_ds.predict.windows import into_parts, regions_of, windows_of

        session = self._session
        genome = session.genome(self._fasta, self._parts)
        strands = "both" if self._strand in ("both", "mean") else self._strand
        regions = session.agreed(lambda: regions_of(genome, self._bed, strands))
        windows = windows_of(regions, self._context, self._stride)
        parts = into_parts(windows)
        lengths = [window.last - window.first for window in windows]
        session.plan(self._predictor.model.config, session.largest_pass(lengths))
        if self._per_base is not None:
            session.agreed(lambda: check_disjoint(regions))
        held_out = session.held_out(whole_regions(regions), self._assembly)
        if not session.work_through(self._parts, len(parts), lambda n: self._part(genome, regions, parts[n]), "score"):
            return False
        session.summary(
            session.on_rank_zero(lambda: self._finish(genome, regions, len(parts)) | {"held_out": held_out})
        )
        return True

    def _settings(self) -> dict[str, Any]:
        return {
            **self._session.settings("score"),
            "fasta": described(self._fasta),
            "regions": None if self._bed is None else described(self._bed),
            "strand": self._strand,
            "context": self._context,
            "stride": self._stride,
            "per_base": None if self._per_base is None else str(self._per_base),
        }

    def _part(self, genome: Genome, regions: list[Region], windows: list[Window]) -> pa.Table:
        import pyarrow as pa

        from hyena_ds.predict.windows import tokens

        ids = [tokens(genome, regions[window.region], window) for window in windows]
        values = log_probabilities(self._predictor, ids, self._options.batch)
        columns: dict[str, list[Any]] = {name: [] for name in ("region", "log_likelihood", "scored", "ignored")}
        bases = []
        for window, ids_n, log_p_n in zip(windows, ids, values, strict=True):
            counts = is_base(ids_n)
            own = np.where(counts, log_p_n, np.nan)[window.scored - window.first :]
            columns["region"].append(window.region)
            columns["log_likelihood"].append(float(np.nansum(own, dtype=np.float64)))
            columns["scored"].append(int(np.count_nonzero(~np.isnan(own))))
            columns["ignored"].append(int(np.count_nonzero(np.isnan(own))))
            bases.append(own.astype(np.float32))
        table = pa.table(columns)
        return (
            table if self._per_base is None else table.append_column("values", pa.array(bases, pa.list_(pa.float32())))
        )

    def _finish(self, genome: Genome, regions: list[Region], count: int) -> dict[str, Any]:
        """Write the outputs; what is to be said of them."""
        total = _Sums()
        rows = self._rows(regions, count, total)
        self._parts.publish(self._options.output, lambda path: write_table(path, rows))
        if self._per_base is not None:
            from hyena_ds.predict.per_base import write_per_base

            target, values = self._per_base, self._values(regions, count)
            mean = self._strand == "mean"
            self._parts.publish(target, lambda path: write_per_base(path, genome.lengths(), regions, values, mean))
        self._parts.remove()
        bits = -total.log_likelihood / max(1, total.scored) / math.log(2)
        say(
            f"{len(regions):,} regions, {total.scored:,} bases scored, {total.ignored:,} not (N, unknown, or first of their "
            f"region): {bits:.4f} bits per base"
        )
        return {
            "rows": len(regions) // (2 if self._strand == "mean" else 1),
            "log_likelihood": total.log_likelihood,
            "scored": total.scored,
            "ignored": total.ignored,
            "bits_per_base": bits,
            **self._settings(),
        }

    def _rows(self, regions: list[Region], count: int, total: _Sums) -> Iterator[dict[str, Any]]:
        """A row for each region, or for the two strands of each; `total` adds them up."""
        sums = [_Sums() for _ in regions]
        for table in self._parts.tables(count):
            for region, log_likelihood, scored, ignored in zip(
                *(table[n].to_pylist() for n in table.column_names[:4]), strict=True
            ):
                for each in (sums[region], total):
                    each.log_likelihood += log_likelihood
                    each.scored += scored
                    each.ignored += ignored
        step = 2 if self._strand == "mean" else 1
        for at in range(0, len(regions), step):
            if step == 1:
                yield sums[at].row(regions[at], regions[at].strand)
            else:
                forward, reverse = sums[at], sums[at + 1]
                both = _Sums(forward.log_likelihood + reverse.log_likelihood, forward.scored + reverse.scored)
                row = both.row(regions[at], ".")
                yield row | {"log_likelihood": both.log_likelihood / 2, "scored": both.scored / 2}

    def _values(self, regions: list[Region], count: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(region, log-probabilities of its next bases in reading direction), window by window."""
        for table in self._parts.tables(count):
            for region, values in zip(table["region"].to_pylist(), table["values"], strict=True):
                yield region, values.values.to_numpy()


def log_probabilities(
    predictor: Predictor, ids: list[NDArray[np.uint8]], batch: int | None
) -> list[NDArray[np.float32]]:
    """For each sequence of ids (n), the log-probability of each of its tokens (n) after those before it; NaN for the first."""
    import torch

    from hyena_ds.predict.windows import into_batches, padded

    found: list[NDArray[np.float32]] = [np.full(len(ids_n), np.nan, dtype=np.float32) for ids_n in ids]
    for numbers in into_batches([len(ids_n) for ids_n in ids], batch, predictor.device.type == "cpu"):
        ids_BL = padded([ids[number] for number in numbers])
        log_p_BL = predictor.log_probabilities(torch.from_numpy(ids_BL)).cpu().numpy()
        for row, number in enumerate(numbers):
            found[number][1:] = log_p_BL[row, : len(ids[number]) - 1]
    return found


def is_base(ids_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which ids are A, C, G or T."""
    is_it: NDArray[np.bool_] = (ids_n >= tokenizer.A) & (ids_n <= tokenizer.T)
    return is_it


def check_disjoint(regions: list[Region]) -> None:
    """Raise UserError where two regions of one strand share a base: it has one value only."""
    at: dict[tuple[str, str], int] = {}
    for region in sorted(regions, key=lambda r: (r.contig, r.strand, r.start)):
        if region.start < at.get((region.contig, region.strand), 0):
            raise UserError(
                f"--per-base: found two regions that share {region.contig}:{region.start:,}, wanted one value a base; merge them"
            )
        at[region.contig, region.strand] = region.end


def described(file: Path) -> list[Any]:
    """What tells a file from another version of it: path, bytes, and time of its last change."""
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]
