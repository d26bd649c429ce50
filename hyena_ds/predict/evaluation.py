"""How well the values of variants tell two classes apart, beside scores that need no model.

    records with a label --labelled--> Labelled
    values of their ALTs, Markov models of the FASTA, exons --evaluate--> AUROC and AUPRC, each with its 95 % interval

Every score is turned so that more of it should mean the first class: a pathogenic variant makes its window less likely.
Intervals are of a bootstrap over groups: genes, or blocks of 10,000 bases, since neighbours are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.baselines.markov import count_mers, log_likelihoods, log_tables, of_other_strand
from hyena_ds.errors import UserError, need
from hyena_ds.genome.bed import read_named
from hyena_ds.genome.tokenizer import A
from hyena_ds.genome.variant_file import VariantFile
from hyena_ds.predict.haplotypes import WindowRule
from hyena_ds.predict.variant_plan import STRANDS, Allele, Planner
from hyena_ds.text import aligned

ORDERS = (2, 5)
"""The Markov models' contexts, in bases."""
NEAR_EXON = 2
"""Bases beyond an exon that still count as its: the splice sites."""
_BLOCK = 10_000
_COUNTED_AT_ONCE = 1 << 22
_RESAMPLES = 500
_INTERVAL = (2.5, 97.5)
_LARGEST_BED = 1 << 30
_SIGNS = {"HDS_LLR": -1.0, "HDS_LLR_FWD": -1.0, "HDS_LLR_REV": -1.0}


@dataclass(frozen=True)
class Question:
    """What tells the two classes apart."""

    key: str
    """A key of INFO, or a column of a TSV."""
    positive: str
    negative: str
    group: str | None
    """A key or column of groups; None: blocks of the contig."""

    @classmethod
    def parse(cls, text: str, group: str | None) -> Question:
        """`LABEL`, whose values are pathogenic and benign, or `LABEL=positive:negative`. Raises UserError."""
        key, equals, values = text.partition("=")
        positive, colon, negative = values.partition(":") if equals else ("pathogenic", ":", "benign")
        if not (key and positive and colon and negative) or positive == negative:
            raise UserError(
                f"--evaluate: found '{text}', wanted LABEL or LABEL=POSITIVE:NEGATIVE, such as class=LOF:FUNC"
            )
        return cls(key, positive, negative, group)


@dataclass(frozen=True)
class Labelled:
    """Variants of one ALT that have values and belong to one of the two classes."""

    alleles: list[Allele]
    positive_n: NDArray[np.bool_]
    group_n: NDArray[np.int64]
    """Which group each belongs to, from 0."""
    near_exon_n: NDArray[np.bool_] | None
    """Which lie within NEAR_EXON bases of an exon; None where nobody said where these are."""


def labelled(source: VariantFile, planner: Planner, question: Question, exons: Path | None) -> Labelled:
    """The variants that a question is about. Raises UserError where one of its classes has none, or a BED cannot be read."""
    alleles, positive, names = [], [], []
    number = 0
    for record, columns in source.records():
        first, number = number, number + len(record.alternatives)
        label = source.column(columns, question.key)
        if len(record.alternatives) > 1 or label not in (question.positive, question.negative):
            continue
        if record.problem(record.alternatives[0]) is not None:
            continue
        contig = planner.contig(record)
        group = None if question.group is None else source.column(columns, question.group)
        alleles.append(Allele(first, contig, record.position, record.reference.upper(), record.alternatives[0].upper()))
        positive.append(label == question.positive)
        names.append(group or f"{contig}:{record.position // _BLOCK}")
    for name, count in ((question.positive, sum(positive)), (question.negative, len(positive) - sum(positive))):
        if not count:
            raise UserError(
                f"--evaluate: found no variant whose {question.key} is '{name}' in {source.path}, wanted some of each class; "
                f"say which values it has with --evaluate {question.key}=POSITIVE:NEGATIVE"
            )
    _, group_n = np.unique(names, return_inverse=True)
    near_n = None if exons is None else _near_exons(alleles, planner, exons)
    return Labelled(alleles, np.array(positive), group_n, near_n)


def evaluate(
    values: dict[str, NDArray[np.float64]], about: Labelled, planner: Planner, rule: WindowRule
) -> list[dict[str, Any]]:
    """A row for each score; `values` are those of all ALTs of the file by name, NaN where there are none."""
    chosen = [allele.number for allele in about.alleles]
    scores = {name: _SIGNS.get(name, 1.0) * column[chosen] for name, column in values.items()}
    there = np.isfinite(np.stack(list(scores.values()))).all(0)  # REFs that were passed over have none
    for order, llr_n in _markov(about.alleles, planner, rule).items():
        scores[f"Markov order {order}"] = -llr_n
    if about.near_exon_n is not None:
        scores[f"inside an exon ± {NEAR_EXON}"] = about.near_exon_n.astype(np.float64)
    return [_row(name, score[there], about.positive_n[there], about.group_n[there]) for name, score in scores.items()]


def shown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table."""
    cells = [("score", "AUROC", "95 %", "AUPRC", "95 %")]
    for row in rows:
        figures = [
            (f"{row[name]:.3f}", "{:.3f}-{:.3f}".format(*row[f"{name}_interval"])) for name in ("auroc", "auprc")
        ]
        cells.append((row["score"], *figures[0], *figures[1]))
    first = rows[0]
    count = f"{first['positive']:,} against {first['negative']:,} variants in {first['groups']:,} groups"
    return [*aligned(cells, left={0}), count]


def _row(
    name: str, score_n: NDArray[np.float64], positive_n: NDArray[np.bool_], group_n: NDArray[np.int64]
) -> dict[str, Any]:
    metrics: Any = need("sklearn.metrics", "predict")
    kinds = {"auroc": metrics.roc_auc_score, "auprc": metrics.average_precision_score}
    generator = np.random.default_rng(0)
    groups = int(group_n.max()) + 1
    drawn: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(_RESAMPLES):
        weight_n = np.bincount(generator.integers(groups, size=groups), minlength=groups)[group_n]
        some = weight_n > 0
        if len(np.unique(positive_n[some])) < 2:
            continue
        for kind, metric in kinds.items():
            drawn[kind].append(float(metric(positive_n[some], score_n[some], sample_weight=weight_n[some])))
    row: dict[str, Any] = {
        "score": name,
        "positive": int(positive_n.sum()),
        "negative": int((~positive_n).sum()),
        "groups": len(np.unique(group_n)),
    }
    for kind, metric in kinds.items():
        row[kind] = float(metric(positive_n, score_n))
        row[f"{kind}_interval"] = np.percentile(drawn[kind] or [row[kind]], _INTERVAL).tolist()
    return row


def _markov(alleles: Sequence[Allele], planner: Planner, rule: WindowRule) -> dict[int, NDArray[np.float64]]:
    """Log-likelihood ratios of the same windows, mean of both strands, under models of all of the FASTA's bases."""
    highest = max(ORDERS)
    counts = np.zeros(4 ** (highest + 1))
    for contig in planner.lengths:
        strand = planner.strand(contig, False)
        for start in range(0, strand.length, _COUNTED_AT_ONCE):
            counts += count_mers(_codes(strand.read(start, start + _COUNTED_AT_ONCE + highest)), highest)
    tables = log_tables(counts + of_other_strand(counts, highest + 1), highest)
    found = {order: np.zeros(len(alleles)) for order in ORDERS}
    for number, allele in enumerate(alleles):
        for reverse in STRANDS:
            strand, change = planner.changed(allele, reverse)
            site = rule.site(strand, change)
            if site is None:
                continue
            first = max(0, site.first - highest - 1)
            _, new = log_likelihoods(_codes(change.read(strand, first, site.end)), tables, ORDERS)
            _, old = log_likelihoods(_codes(strand.read(first, site.end)), tables, ORDERS)
            for order in ORDERS:
                found[order][number] += (new[order] - old[order]) / len(STRANDS)
    return found


def _codes(ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    return ids.astype(np.int64) - A


def _near_exons(alleles: Sequence[Allele], planner: Planner, exons: Path) -> NDArray[np.bool_]:
    near: dict[str, NDArray[np.bool_]] = {}
    for exon in read_named(exons, planner.lengths_by_any_name(), _LARGEST_BED):
        contig = planner.aliases.get(exon.chromosome, exon.chromosome)
        if contig not in near:
            near[contig] = np.zeros(planner.lengths[contig], dtype=bool)
        near[contig][max(0, exon.start - NEAR_EXON) : exon.end + NEAR_EXON] = True
    return np.array([allele.contig in near and bool(near[allele.contig][allele.position]) for allele in alleles])
