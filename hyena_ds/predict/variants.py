"""`hyena-ds variants`: what a model says of every ALT of a file, on both strands.

    VCF, BCF or TSV --Planner--> parts --Effects, from one pass a window--> values of each ALT and strand
                                        --in the file's order--> the same records with values, or a table

An ALT's values depend on the FASTA around it and on the rule of windows, on nothing else in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import UserError, need, say
from hyena_ds.genome.fasta import check_readable
from hyena_ds.genome.variant_file import VariantFile
from hyena_ds.predict.options import add_assembly, add_options, options_of
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.score import described
from hyena_ds.predict.variant_output import (
    SUFFIXES,
    VALUES,
    Annotated,
    check_unannotated,
    is_sorted,
    renew_index,
    write_annotated,
)
from hyena_ds.runs.trained_on import trained_context

if TYPE_CHECKING:
    import pyarrow as pa

    from hyena_ds.predict.effects import Effects
    from hyena_ds.predict.evaluation import Labelled, Question
    from hyena_ds.predict.session import Pass, Session
    from hyena_ds.predict.variant_plan import Part, Plan, Planner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds variants`; `run` is a function of the parsed arguments."""
    add_options(parser, "annotated variants: .vcf.gz, .vcf, .bcf, .parquet or .tsv")
    add_assembly(parser)
    parser.add_argument("fasta", metavar="FASTA", help="genome that the variants are of, plain or gzip")
    parser.add_argument("variants", metavar="VCF", help="VCF, BCF, or TSV with columns chrom pos ref alt")
    parser.add_argument("--left", type=int, metavar="N", help="least bases read before a variant (default: 131,072)")
    parser.add_argument("--right", type=int, metavar="N", help="bases read from it on (default: 4,096)")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="X=chrX", help="the FASTA's name of a contig of the VCF"
    )
    parser.add_argument("--skip-mismatch", action="store_true", help="pass over records whose REF the FASTA has not")
    parser.add_argument("--position-column", default="pos", metavar="NAME", help="column of a TSV (default: pos)")
    parser.add_argument(
        "--evaluate",
        metavar="LABEL",
        help="how well the values tell pathogenic from benign: an INFO key or column, or KEY=POSITIVE:NEGATIVE",
    )
    parser.add_argument("--group", metavar="KEY", help="INFO key or column of genes, for the intervals of --evaluate")
    parser.add_argument("--exons", metavar="BED", help="also how well being near an exon tells them apart")
    parser.set_defaults(run=_variants)


def _variants(parsed: argparse.Namespace) -> int:
    options = options_of(parsed, SUFFIXES)
    need("pyarrow", "predict")
    if options.output.name.endswith((".gz", ".bcf")):
        need("pysam", "predict")
    aliases = dict(_alias(text) for text in parsed.alias)
    fasta, variants = Path(parsed.fasta), Path(parsed.variants)
    check_readable(fasta)
    source = VariantFile(variants, parsed.position_column)
    check_unannotated(source)
    question = None if parsed.evaluate is None else _question(parsed)
    from hyena_ds.predict.session import start

    return start(parsed, options, lambda session: _Annotation(session, fasta, source, aliases, question, parsed).run())


def _alias(text: str) -> tuple[str, str]:
    name, equals, contig = text.partition("=")
    if not (name and equals and contig):
        raise UserError(f"--alias: found '{text}', wanted NAME=CONTIG, such as X=chrX")
    return name, contig


def _question(parsed: argparse.Namespace) -> Question:
    need("sklearn", "predict")
    from hyena_ds.predict.evaluation import Question

    return Question.parse(parsed.evaluate, parsed.group)


class _Annotation:
    """One annotation: what is computed, in which parts, and what comes of it."""

    def __init__(
        self,
        session: Session,
        fasta: Path,
        source: VariantFile,
        aliases: dict[str, str],
        question: Question | None,
        parsed: argparse.Namespace,
    ):
        from hyena_ds.predict.haplotypes import WindowRule

        self._session, self._options = session, session.options
        self._fasta, self._source, self._aliases = fasta, source, aliases
        self._question, self._exons = question, None if parsed.exons is None else Path(parsed.exons)
        self._skip, self._position_column = parsed.skip_mismatch, parsed.position_column
        self._assembly = parsed.assembly
        self._predictor = session.load()
        self._rule = WindowRule.fit(parsed.left, parsed.right, session.context(self._predictor))
        self._parts = Parts(self._options.output)
        trained = trained_context(self._options.model)
        if trained is not None and self._rule.left + self._rule.right > trained and session.rank == 0:
            say(
                f"windows of {self._rule.left + self._rule.right:,} bases and more, and the model was trained on at most "
                f"{trained:,}: what it makes of more is unknown; --left and --right choose shorter ones"
            )

    def run(self) -> bool:
        """Whether all is done. Collective."""
        return self._session.in_parts(self._parts, self._settings(), self._work)

    def _work(self) -> bool:
        from hyena_ds.predict.effects import Effects
        from hyena_ds.predict.variant_plan import Planner

        session, rule = self._session, self._rule
        genome = session.genome(self._fasta, self._parts)
        planner = session.agreed(lambda: Planner(self._source, genome, self._aliases, self._skip))
        plan = session.agreed(lambda: planner.plan(rule))
        about = session.agreed(lambda: self._labelled(planner))
        effects = Effects(self._predictor, rule, self._options.batch)
        held_out = session.held_out(plan.spans(), self._assembly)
        if plan.parts:
            session.plan(self._predictor.model.config, *self._passes(plan, planner, effects))
        work = lambda number: self._part(planner, effects, plan.parts[number])  # noqa: E731
        if not session.work_through(self._parts, len(plan.parts), work, "variants"):
            return False
        session.summary(session.on_rank_zero(lambda: self._finish(plan, planner, about) | {"held_out": held_out}))
        return True

    def _passes(self, plan: Plan, planner: Planner, effects: Effects) -> tuple[Pass, Pass]:
        """That over the longest window, and that over the most ends, beside what is kept of the window that keeps most."""
        from hyena_ds.predict.session import Pass
        from hyena_ds.predict.shared_prefix import kept_bytes

        config, rule = self._predictor.model.config, self._rule
        lengths = [min(rule.length, planner.lengths[part.contig] - part.window) for part in plan.parts]
        kept = max(length - (part.kept_from - part.window) for length, part in zip(lengths, plan.parts, strict=True))
        held = kept_bytes(config, kept) / self._options.sequence_parallel
        ends = min(effects.ends_at_once(rule.right), max(len(part.alleles) for part in plan.parts))
        return Pass(1, max(lengths), held=held), Pass(ends, rule.right, held=held, is_cut=False)

    def _settings(self) -> dict[str, Any]:
        return {
            **self._session.settings("variants"),
            "fasta": described(self._fasta),
            "variants": described(self._source.path),
            "left": self._rule.left,
            "right": self._rule.right,
            "step": self._rule.step,
            "aliases": self._aliases,
            "skip_mismatch": self._skip,
            "position_column": self._position_column,
        }

    def _part(self, planner: Planner, effects: Effects, part: Part) -> pa.Table:
        import pyarrow as pa

        from hyena_ds.predict.effects import MEASURES

        strand, placed = planner.placed(part, self._rule)
        values_B4 = effects.of(strand, placed, part.kept_from).numpy()
        return pa.table(
            {
                "number": [allele.number for allele in part.alleles],
                "reverse": [part.reverse] * len(placed),
                "edge": [each.site.edge for each in placed],
                **{name: values_B4[:, at] for at, name in enumerate(MEASURES)},
            }
        )

    def _finish(self, plan: Plan, planner: Planner, about: Labelled | None) -> dict[str, Any]:
        """Write the outputs; what is to be said of them."""
        values_A6, edge_A = self._values(plan)
        output, settings = self._options.output, self._settings()
        facts = self._facts(settings)
        self._parts.publish(
            output,
            lambda path: write_annotated(path, self._source, self._annotated(plan, values_A6, edge_A), facts),
        )
        if output.name.endswith(".vcf.gz"):
            renew_index(output, is_sorted(record for record, _ in self._source.records()))
        evaluated = {} if about is None else {"evaluation": self._evaluated(values_A6, planner, about)}
        self._parts.remove()
        counts = dict(plan.counts)
        counts |= {"with_values": sum(reason is None for reason in plan.filters), "edge": int(edge_A.sum())}
        shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        say(f"{shown}; {plan.windows:,} windows")
        return {"counts": counts, "windows": plan.windows, **evaluated, **settings}

    def _labelled(self, planner: Planner) -> Labelled | None:
        if self._question is None:
            return None
        from hyena_ds.predict.evaluation import labelled

        return labelled(self._source, planner, self._question, self._exons)

    def _evaluated(self, values_A6: NDArray[np.float64], planner: Planner, about: Labelled) -> list[dict[str, Any]]:
        from hyena_ds.predict.evaluation import evaluate, shown

        rows = evaluate(dict(zip(VALUES, values_A6.T, strict=True)), about, planner, self._rule)
        print("\n".join(shown(rows)))
        return rows

    def _values(self, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(values of every ALT in the order of VALUES, NaN where there are none; whether an end of the contig was near)."""
        from hyena_ds.predict.effects import MEASURES

        count = len(plan.filters)
        measured_A24 = np.full((count, 2, len(MEASURES)), np.nan)
        edge_A = np.zeros(count, dtype=bool)
        for table in self._parts.tables(len(plan.parts)):
            number, reverse = table["number"].to_numpy(), table["reverse"].to_numpy().astype(int)
            measured_A24[number, reverse] = np.stack([table[name].to_numpy() for name in MEASURES], 1)
            np.logical_or.at(edge_A, number, table["edge"].to_numpy())
        for (number, reverse), edge in plan.alike.items():
            measured_A24[number, int(reverse)] = 0.0
            edge_A[number] |= edge
        mean_A4, llr_A2 = measured_A24.mean(1), measured_A24[:, :, 0]
        return np.concatenate((mean_A4[:, :1], llr_A2, mean_A4[:, 1:]), 1), edge_A

    def _annotated(self, plan: Plan, values_A6: NDArray[np.float64], edge_A: NDArray[np.bool_]) -> Iterator[Annotated]:
        first = 0
        for record, columns in self._source.records():
            here = slice(first, first + len(record.alternatives))
            first = here.stop
            reasons = plan.filters[here]
            rows = zip(values_A6[here].tolist(), reasons, strict=True)
            values = [tuple(row) if reason is None else None for row, reason in rows]
            yield Annotated(record, columns, values, reasons, edge_A[here].tolist())
        assert first == len(values_A6) and values_A6.shape[1] == len(VALUES)

    def _facts(self, settings: dict[str, Any]) -> str:
        names = ["model", "left", "right", "step", "precision"]
        names += ["shift"] if settings["shift"] is not None else []
        return " ".join(f"{name}={settings[name]}" for name in names).replace("model=", "model=sha256:")
