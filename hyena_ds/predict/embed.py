"""`hyena-ds embed`: hidden states of sequences, one vector a base, or one for the whole sequence.

    FASTA, BED | table --> rows --hidden states of a layer--> pooled_D or states_nD --> parts --> a file

A row never depends on the others: padding is on the right, where a causal model does not see it, and pooling leaves it out.
N and unknown are tokens like others.

B batch, L context length, l local length, D width, n bases of a sequence.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import UserError, need, say
from hyena_ds.genome.fasta import check_readable
from hyena_ds.genome.packed import check_file
from hyena_ds.predict.embeddings import NEEDED, write_embeddings
from hyena_ds.predict.options import add_options, options_of
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.score import STRANDS, described
from hyena_ds.predict.sequences import Sequences, is_table, lay_out, of_regions, of_table

if TYPE_CHECKING:
    import pyarrow as pa

    from hyena_ds.model.pooling import Pooling
    from hyena_ds.predict.predictor import Predictor
    from hyena_ds.predict.session import Session
    from hyena_ds.predict.windows import Window

POOLS: dict[str, Pooling | None] = {"mean": "mean", "last": "last", "max": "maximum", "none": None}
"""Names of the command line, and those of model/pooling.py."""
_CHANNELS = 16
"""Channels that are pooled at once: what pooling makes of all of them would be several activations."""
_PART_NUMBERS = 1 << 24
"""Numbers of a part without pooling, 64 MiB, if it has more than one sequence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds embed`; `run` is a function of the parsed arguments."""
    add_options(parser, "embeddings: .parquet, .zarr or .h5ad; of every base .zarr")
    parser.add_argument(
        "input", metavar="INPUT", help="FASTA, or a .csv, .tsv or .parquet with a column sequence (and name, label)"
    )
    parser.add_argument(
        "--layer",
        metavar="N",
        default="last",
        help="0: the embedding; N: after N blocks; last, or all blocks: after the final norm too (default: last)",
    )
    parser.add_argument(
        "--pool", choices=list(POOLS), default="mean", help="one vector a sequence, or none: one a base (default: mean)"
    )
    parser.add_argument("--regions", metavar="BED", help="embed these regions of a FASTA (default: every whole record)")
    parser.add_argument(
        "--strand",
        choices=STRANDS,
        help="strand that is read; both: a row each; mean: the mean of both (default: the BED's, else +)",
    )
    parser.set_defaults(run=_embed)


def _embed(parsed: argparse.Namespace) -> int:
    options = options_of(parsed, tuple(NEEDED))
    source, bed = Path(parsed.input), None if parsed.regions is None else Path(parsed.regions)
    if parsed.pool == "none" and options.output.suffix != ".zarr":
        raise UserError(
            f"--output: found '{options.output}' with --pool none, wanted a .zarr: it holds a vector a base"
        )
    need("pyarrow", "predict")
    need(*NEEDED[options.output.suffix])
    if is_table(source):
        check_file(source, "table", "name an existing one")
        if bed is not None:
            raise UserError(f"--regions: found a BED beside the table {source}, whose rows are sequences; name a FASTA")
    else:
        check_readable(source)
    if bed is not None:
        check_file(bed, "BED", "name an existing BED")
    from hyena_ds.predict.session import start

    return start(
        parsed,
        options,
        lambda session: _Embedding(session, source, bed, parsed.strand, parsed.layer, parsed.pool).run(),
    )


class _Embedding:
    """One embedding: of what, in which parts, and what comes of it."""

    def __init__(self, session: Session, source: Path, bed: Path | None, strand: str | None, layer: str, pool: str):
        self._session, self._options = session, session.options
        self._source, self._bed, self._strand, self._pool = source, bed, strand, pool
        self._predictor = session.load()
        self._layer = _layer(layer, self._predictor.model.config.layers)
        self._context = session.context(self._predictor)
        self._parts = Parts(self._options.output)

    def run(self) -> bool:
        """Whether all is done. Collective."""
        return self._session.in_parts(self._parts, self._settings(), self._work)

    def _work(self) -> bool:
        from hyena_ds.predict.windows import PART_BASES, Window, into_parts

        session, config = self._session, self._predictor.model.config
        rows = self._rows()
        lengths = [row.length for row in rows.rows]
        session.agreed(lambda: self._check(rows, max(lengths)))
        windows = [Window(number, 0, length, 0) for number, length in enumerate(lengths)]
        parts = into_parts(windows, PART_BASES if POOLS[self._pool] else max(1, _PART_NUMBERS // config.width))
        kept = 4 * (config.width * 2 if POOLS[self._pool] is None else _CHANNELS * 4)
        session.plan(config, session.largest_pass(lengths, kept))
        if not session.work_through(self._parts, len(parts), lambda n: self._part(rows, parts[n]), "embed"):
            return False
        session.summary(session.on_rank_zero(lambda: self._finish(rows, len(parts))))
        return True

    def _rows(self) -> Sequences:
        """What is embedded. Collective."""
        from hyena_ds.predict.windows import regions_of

        session, parts = self._session, self._parts
        if is_table(self._source):
            session.on_rank_zero(lambda: lay_out(self._source, parts.directory))
            return of_table(parts.directory, self._strand or "+")
        genome = session.genome(self._source, parts)
        empty = [name for name, length in genome.lengths().items() if not length]
        if empty and self._bed is None:
            raise UserError(f"{self._source}: record '{empty[0]}' has no bases, wanted at least 1; leave it out")
        strands = "both" if self._strand in ("both", "mean") else self._strand
        regions = session.agreed(lambda: regions_of(genome, self._bed, strands))
        return of_regions(genome, regions, self._strand == "mean")

    def _check(self, rows: Sequences, longest: int) -> None:
        given = self._options.context is not None
        rows.check_lengths(self._source, self._context, "--context" if given else "the model's maximum_context")
        self._predictor.layout(longest)

    def _settings(self) -> dict[str, Any]:
        return {
            **self._session.settings("embed"),
            "input": described(self._source),
            "regions": None if self._bed is None else described(self._bed),
            "strand": self._strand,
            "layer": "last" if self._layer is None else self._layer,
            "pool": self._pool,
            "context": self._context,
            "output": self._options.output.suffix,
        }

    def _part(self, rows: Sequences, windows: list[Window]) -> pa.Table:
        """A column `embedding` of vectors: one a row, or one a base."""
        import pyarrow as pa

        ids, are_means = [], []
        for window in windows:
            strand = rows.rows[window.region].strand
            are_means.append(strand == ".")
            ids += [rows.ids(window.region, each) for each in ("+-" if strand == "." else strand)]
        found = iter(embeddings(self._predictor, ids, self._options.batch, self._layer, self._pool))
        values = []
        for is_mean in are_means:
            own = next(found)
            if is_mean:
                # Of a base, the other strand's state is at its place counted from the other end.
                other = next(found)
                own = np.float32(0.5) * (own + (other if POOLS[self._pool] else other[::-1]))
            values.append(own.reshape(-1))
        if not self._session.leads:
            values = []
        flat = pa.array(values[0] if len(values) == 1 else np.concatenate([*values, np.zeros(0, dtype=np.float32)]))
        return pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, self._predictor.model.config.width)})

    def _finish(self, rows: Sequences, count: int) -> dict[str, Any]:
        """Write the output; what is to be said of it."""
        columns, width = rows.columns(), self._predictor.model.config.width
        lengths = [row.length for row in rows.rows]
        about = {
            name: value for name, value in self._settings().items() if name in ("model", "layer", "pool", "context")
        }
        values = (table["embedding"].combine_chunks() for table in self._parts.tables(count))
        per_base = lengths if POOLS[self._pool] is None else None
        self._parts.publish(
            self._options.output,
            lambda path: write_embeddings(path, columns, values, width, per_base, about, self._parts.directory),
        )
        self._parts.remove()
        say(
            f"{len(lengths):,} sequences, {sum(lengths):,} bases: {width} numbers {'each' if per_base is None else 'a base'}"
        )
        return {"rows": len(lengths), "bases": sum(lengths), "width": width, **self._settings()}


def embeddings(
    predictor: Predictor, ids: list[NDArray[np.uint8]], batch: int | None, layer: int | None, pool: str
) -> list[NDArray[np.float32]]:
    """For each sequence of ids (n), its vector (D), or, with the pool none, one for each token (n, D). Collective."""
    import torch

    from hyena_ds.predict.windows import into_batches, padded

    D = predictor.model.config.width
    found: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(ids)
    for numbers in into_batches([len(ids_n) for ids_n in ids], batch, predictor.device.type == "cpu"):
        lengths = [len(ids[number]) for number in numbers]
        hidden_BlD = predictor.hidden(torch.from_numpy(padded([ids[number] for number in numbers])), layer)
        shape = (len(numbers), D) if POOLS[pool] else (len(numbers), lengths[0], D)
        values = np.empty(shape, dtype=np.float32)
        for first in range(0, D, _CHANNELS):
            some = slice(first, first + _CHANNELS)
            values[..., some] = predictor.pooled(hidden_BlD[..., some], lengths, POOLS[pool]).cpu().numpy()
        del hidden_BlD  # not beside the next pass
        for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
            found[number] = values[row] if POOLS[pool] else values[row, :length]
    return found


def _layer(text: str, layers: int) -> int | None:
    """How many blocks; None: all, and the final norm."""
    if text == "last":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= layers):
        raise UserError(f"--layer: found '{text}', wanted last or a number from 0 to the model's {layers} layers")
    return None if int(text) == layers else int(text)
