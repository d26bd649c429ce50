"""`hyena-ds perplexity`: how well a model predicts held-out bases, from how much context, beside models that merely count.

    FASTA, BED --> target blocks --windows--> sums of losses in parts --> context.tsv, position.tsv, recall.tsv
                                 --counts, compressors--> baselines.tsv          all: summary.json, perplexity.png

Only A, C, G and T are targets. Losses are over all columns of the head, as in training.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_ds.config.limits import MOST_CONTEXT, MOST_TOKENS, check_count, whole_number
from hyena_ds.errors import UserError, need, say
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.fasta import Genome, check_readable
from hyena_ds.genome.packed import check_file
from hyena_ds.predict.options import add_assembly, add_options, options_of
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.tables import write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from hyena_ds.predict.held_out import Spans
    from hyena_ds.predict.session import Session
    from hyena_ds.predict.targets import Row
    from hyena_ds.predict.windows import Region

TABLES = ("context", "position", "baselines", "recall")
_FILES = (*(f"{name}.tsv" for name in TABLES), "summary.json", "perplexity.png")
_LEAST_CONTEXT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds perplexity`; `run` is a function of the parsed arguments."""
    add_options(parser, "directory for tables, a summary and a picture; it is made")
    parser.add_argument("fasta", metavar="FASTA", help="genome or sequences, plain or gzip")
    parser.add_argument("--regions", metavar="BED", help="take targets and contexts from these (default: every record)")
    parser.add_argument(
        "--train", metavar="FASTA", help="bases that Markov models learn (default: those before, online)"
    )
    parser.add_argument("--train-regions", metavar="BED", help="learn these of --train (default: every record)")
    parser.add_argument(
        "--targets", type=whole_number, default=65_536, metavar="N", help="bases to score (default: 65536)"
    )
    parser.add_argument(
        "--block", type=whole_number, default=1024, metavar="N", help="targets in a row (default: 1024)"
    )
    parser.add_argument(
        "--segment", type=whole_number, metavar="N", help="bases that are repeated (default: 256, or what fits)"
    )
    add_assembly(parser)
    parser.set_defaults(run=_perplexity)


@dataclass(frozen=True)
class _Inputs:
    """Files of one command."""

    fasta: Path
    regions: Path | None
    train: Path | None
    train_regions: Path | None
    assembly: str | None


def _perplexity(parsed: argparse.Namespace) -> int:
    options = options_of(parsed, ("",))
    _check_directory(options.output)
    regions, train, train_regions = (
        None if name is None else Path(name) for name in (parsed.regions, parsed.train, parsed.train_regions)
    )
    inputs = _Inputs(Path(parsed.fasta), regions, train, train_regions, parsed.assembly)
    for option, value in (("--targets", parsed.targets), ("--block", parsed.block), ("--segment", parsed.segment)):
        check_count(option, value, MOST_TOKENS if option == "--targets" else MOST_CONTEXT)
    if inputs.train is None and inputs.train_regions is not None:
        raise UserError("--train-regions: found no --train, wanted the FASTA that they are regions of")
    for fasta in (inputs.fasta, inputs.train):
        if fasta is not None:
            check_readable(fasta)
    for bed in (inputs.regions, inputs.train_regions):
        if bed is not None:
            check_file(bed, "BED", "name an existing BED")
    need("pyarrow", "predict")
    need("matplotlib", "plots")
    from hyena_ds.predict.session import start

    return start(
        parsed,
        options,
        lambda session: _Perplexity(session, inputs, parsed.targets, parsed.block, parsed.segment).run(),
    )


def _check_directory(output: Path) -> None:
    """Raise UserError unless `output` may be made, or replaced where it is there: it holds nothing but what this verb writes."""
    if not output.name or output.name == "..":
        raise UserError(f"--output: found '{output}', wanted the name of a directory to make")
    if output.exists():
        others = [] if not output.is_dir() else sorted({entry.name for entry in output.iterdir()} - set(_FILES))
        if others or not output.is_dir():
            raise UserError(
                f"--output: {output}: found {others[0] if others else 'a file'}, wanted a new directory, or one of an earlier "
                "perplexity; name another"
            )


class _Perplexity:
    """One measurement: of which targets, in which parts, and what comes of it."""

    def __init__(self, session: Session, inputs: _Inputs, targets: int, block: int, segment: int | None):
        from hyena_ds.predict.targets import Plan

        self._session, self._options, self._inputs = session, session.options, inputs
        self._predictor = session.load()
        context = session.context(self._predictor, _LEAST_CONTEXT)
        fits = min(block, context // 2)
        segment = segment or min(256, max(1, context // 4), fits)
        if segment > fits:
            raise UserError(
                f"--segment: found {segment:,}, wanted at most {fits:,}: a block, and half a context; take a shorter one"
            )
        self._plan = Plan(context, block, targets, segment)
        self._parts = Parts(self._options.output)

    def run(self) -> bool:
        """Whether all is done. Collective."""
        return self._session.in_parts(self._parts, self._settings(), self._work)

    def _settings(self) -> dict[str, Any]:
        from hyena_ds.predict.score import described

        files = vars(self._inputs).items()
        return {
            **self._session.settings("perplexity"),
            **{name: described(file) if isinstance(file, Path) else file for name, file in files},
            **vars(self._plan),
        }

    def _work(self) -> bool:
        from hyena_ds.predict.beside import baseline_rows
        from hyena_ds.predict.held_out import spans_of
        from hyena_ds.predict.targets import Measurement, blocks_of, check_known
        from hyena_ds.predict.windows import regions_of

        session, plan, inputs = self._session, self._plan, self._inputs
        genome = session.genome(inputs.fasta, self._parts)
        regions = session.agreed(lambda: regions_of(genome, inputs.regions, None))
        blocks = session.agreed(lambda: blocks_of(regions, plan))
        session.on_rank_zero(lambda: check_known(genome, regions, blocks))
        training = None
        if inputs.train is not None:
            learnt = session.genome(inputs.train, self._parts, "train")
            training = learnt, session.agreed(lambda: regions_of(learnt, inputs.train_regions, "+"))
        spans = spans_of(regions, blocks)
        seen = self._seen_by_baselines(spans, training)
        held_out = {**session.held_out(spans, inputs.assembly), "baselines_saw": seen}
        if seen and session.rank == 0:
            say(f"warning: the Markov models learn {seen:,} of the target bases: name others with --train-regions")
        measurement = Measurement(self._predictor, genome, regions, plan, self._options.batch)
        parts = plan.in_parts(blocks)
        passes = plan.windows_at_once(max(len(part) for part in parts))
        session.plan(self._predictor.model.config, *(session.largest_pass(lengths) for lengths in passes))
        if not session.work_through(
            self._parts, len(parts), lambda number: _table(measurement.rows(parts[number])), "perplexity"
        ):
            return False

        def finish() -> dict[str, Any]:
            last = len(parts)
            if last in self._parts.missing(last + 1):
                self._parts.write(last, _table(baseline_rows(genome, regions, blocks, plan.context, training)))
            return self._finish(last + 1, len(blocks), {"regions": len(regions), "held_out": held_out})

        session.summary(session.on_rank_zero(finish))
        return True

    def _seen_by_baselines(self, spans: Spans, training: tuple[Genome, list[Region]] | None) -> int | None:
        """Target bases that the Markov models learn: known where they learn from the FASTA of the targets."""
        from hyena_ds.predict.held_out import shared_bases, whole_regions

        if training is None or self._inputs.train is None:
            return 0
        if self._inputs.train.resolve() != self._inputs.fasta.resolve():
            return None
        return shared_bases(spans, whole_regions(training[1]))

    def _finish(self, count: int, blocks: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the outputs; what is to be said of them."""
        from hyena_ds.predict.curves import draw, tables_of

        tables = tables_of(self._parts.tables(count), blocks, self._plan, self._inputs.train is not None)
        longest = tables["context"][-1]
        best = min(tables["context"], key=lambda row: float(row["nats"]))
        markov = min(
            (row for row in tables["baselines"] if row["order"] is not None), key=lambda row: float(row["nats"])
        )
        summary = {
            **{name: longest[name] for name in ("targets", "nats", "nats_error", "bits_per_base", "perplexity")},
            "best_context": best["context"],
            "best_context_bits_per_base": best["bits_per_base"],
            "best_markov_order": markov["order"],
            "best_markov_bits_per_base": markov["bits_per_base"],
            **facts,
            **self._settings(),
            **tables,
        }

        def write(directory: Path) -> None:
            directory.mkdir()
            for name, rows in tables.items():
                write_table(directory / f"{name}.tsv", rows)
            write_whole(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
            title = f"{self._options.model.name}: {longest['targets']:,} targets of {self._inputs.fasta.name}"
            draw(directory / "perplexity.png", title, tables)

        self._parts.publish(self._options.output, write)
        self._parts.remove()
        say(
            f"{longest['targets']:,} bases after at most {self._plan.context:,}: {longest['bits_per_base']:.4f} bits per base, "
            f"perplexity {longest['perplexity']:.4f}; best after at most {best['context']:,}: {best['bits_per_base']:.4f}; "
            f"the best Markov model, of order {markov['order']}: {markov['bits_per_base']:.4f}"
        )
        return summary


def _table(rows: list[Row]) -> pa.Table:
    import pyarrow as pa

    from hyena_ds.predict.targets import COLUMNS

    return pa.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
