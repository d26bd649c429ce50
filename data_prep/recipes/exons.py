"""Where exons are, base by base: windows of one strand whose every base is labelled.

    exons --of one strand--> union of exons, extents of genes --a digit a base--> windows

On the reverse strand both sequence and labels are read from the other end, so a gene's first exon always comes first.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.recipes.examples import Example, Made, part
from data_prep.recipes.genes import Gene, genes_of
from data_prep.recipes.options import add_coordinates, add_exons, add_split, drawn, rule_from
from data_prep.recipes.reading import Feature, read_exons
from data_prep.recipes.sequences import Reference, most_contig, opened
from data_prep.recipes.splitting import Homes, Span
from hyena_ds.genome.letters import Bytes

INPUTS = ("exons", "genome")
OUTSIDE, INTRON, EXON, UNLABELLED = b"012."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task exons` takes."""
    add_exons(parser)
    parser.add_argument(
        "--window", type=int, default=4096, metavar="BASES", help="length of a sequence (default: 4096)"
    )
    parser.add_argument(
        "--strand", choices=("+", "-", "both"), default="both", help="strand whose genes are labelled (default: both)"
    )
    add_coordinates(parser, "bed")
    add_split(parser, "the window")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from an exon table and a genome. Raises UserError."""
    exons = read_exons(Path(args.exons), args.coordinates)
    rule = rule_from(args, args.window)
    left_out: Counter[str] = Counter()
    with opened(Path(args.genome), work / "genome") as reference:
        names = most_contig(reference, {exon.contig for exon in exons}, Path(args.exons))
        known = [exon for exon in exons if exon.contig in names]
        left_out["an exon on a contig that the genome does not have"] = len(exons) - len(known)
        rows = []
        for strand in "+-" if args.strand == "both" else args.strand:
            by_contig: dict[str, list[Feature]] = {}
            for exon in known:
                if exon.strand == strand:
                    by_contig.setdefault(exon.contig, []).append(exon)
            for name, contig in names.items():
                here = by_contig.get(name, [])
                rows += _windows(reference, contig, strand, here, args.window, args.seed, left_out)
    # A window at the edge of a gene belongs to it, so what is kept together is as long as whole windows are.
    homes = Homes(_rounded(gene, names[gene.contig], args.window) for gene in genes_of(known))
    splits = part(rows, [homes.of(row.contig, row.start, row.end) for row in rows], rule, left_out)
    return Made(
        "per_base",
        splits,
        rule.describe("genes and the windows that they reach into, those that overlap together"),
        "a digit a base, of genes on the row's strand alone: 0 outside of genes, 1 intron, 2 exon of any transcript; . where the "
        "base is N",
        "forward",
        left_out=+left_out,
        notes=(
            "Windows do not overlap on a strand. There are all that hold a base of an exon, and as many that hold none, drawn "
            "by the seed.",
            "A window may stand there on either strand, with that strand's genes. So the reverse complement of a row does not have "
            "its labels: do not augment by it.",
        ),
    )


def _windows(
    reference: Reference,
    contig: str,
    strand: str,
    exons: list[Feature],
    window: int,
    seed: int,
    left_out: Counter[str],
) -> list[Example]:
    length = reference.lengths[contig] // window * window
    labels = _labels(exons, length)
    has_exon = (labels.reshape(-1, window) == EXON).any(axis=1)
    without = drawn(np.flatnonzero(~has_exon), seed, contig, strand).tolist()
    owed = int(has_exon.sum())
    rows = []
    for index in np.flatnonzero(has_exon).tolist() + without:
        if not has_exon[index] and owed == 0:
            break
        start, end = index * window, (index + 1) * window
        letters = reference.letters(contig, start, end)
        is_n = letters == ord("N")
        if 2 * np.count_nonzero(is_n) > window:
            left_out["more than half of the window is N"] += 1
            continue
        marks = np.where(is_n, UNLABELLED, labels[start:end]).astype(np.uint8)
        sequence = reference.window(contig, start, end, strand) or ""
        label = (marks[::-1] if strand == "-" else marks).tobytes().decode("ascii")
        rows.append(Example(sequence, label, contig, start, end, strand))
        owed -= not has_exon[index]
    return rows


def _labels(exons: list[Feature], length: int) -> Bytes:
    """The mark of each base of a contig, forward."""
    labels = np.full(length, OUTSIDE, dtype=np.uint8)
    for gene in genes_of(exons):
        labels[gene.start : gene.end] = INTRON
    for exon in exons:
        labels[exon.start : exon.end] = EXON
    return labels


def _rounded(gene: Gene, contig: str, window: int) -> Span:
    return Span(contig, gene.start // window * window, -(-gene.end // window) * window)
