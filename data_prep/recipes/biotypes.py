"""What kind a gene is: the sequence of each gene, from its 5' end, and its biotype.

genes --biotypes that are frequent enough--> classes    gene --its strand, cut to the longest--> sequence
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from data_prep.recipes.examples import SPLITS, Example, Made, part, without_repeats
from data_prep.recipes.options import add_coordinates, add_split, rule_from
from data_prep.recipes.reading import Feature, read_genes
from data_prep.recipes.sequences import Reference, most_contig, opened
from data_prep.recipes.splitting import Homes, Span
from hyena_ds.errors import UserError

INPUTS = ("genes", "genome")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task biotypes` takes."""
    parser.add_argument(
        "--genes",
        required=True,
        metavar="FILE",
        help="GTF, or a table with the columns chr, start, end, strand, gene_id (or ensgene), biotype",
    )
    parser.add_argument("--genome", required=True, metavar="FASTA", help="the assembly of the annotation")
    parser.add_argument(
        "--longest",
        type=int,
        default=16384,
        metavar="BASES",
        help="what is kept of a gene, from its 5' end (default: 16384)",
    )
    parser.add_argument(
        "--least", type=int, default=30, metavar="N", help="genes that a class has, at least (default: 30)"
    )
    add_coordinates(parser, "ensembl")
    add_split(parser, "the longest sequence")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from a gene table and a genome. Raises UserError."""
    genes = read_genes(Path(args.genes), args.coordinates)
    if args.least < 3:
        raise UserError(f"--least: found {args.least}, wanted at least 3, one for each split")
    try:
        rule = rule_from(args, args.longest)
    except UserError as error:
        raise UserError(str(error).replace("--window", "--longest")) from None
    left_out: Counter[str] = Counter()
    with opened(Path(args.genome), work / "genome") as reference:
        names = most_contig(reference, {gene.contig for gene in genes}, Path(args.genes))
        rows = []
        for gene in genes:
            row = _row(reference, names.get(gene.contig), gene, args.longest)
            if isinstance(row, str):
                left_out[row] += 1
            else:
                rows.append(row)
    counts = Counter(row.label for row in rows)
    kept = [row for row in rows if counts[row.label] >= args.least]
    left_out[f"its biotype has fewer than {args.least} genes"] = len(rows) - len(kept)
    homes = Homes(Span(names[gene.contig], gene.start, gene.end) for gene in genes if gene.contig in names)
    splits = part(kept, [homes.of(row.contig, row.start, row.end) for row in kept], rule, left_out)
    splits = without_repeats(splits, left_out)
    everywhere = set.intersection(*({row.label for row in splits[split]} for split in SPLITS))
    for split, found in splits.items():
        splits[split] = [row for row in found if row.label in everywhere]
        left_out["its biotype is missing in a split"] += len(found) - len(splits[split])
    if len(everywhere) < 2:
        raise UserError(
            f"{args.genes}: found {len(everywhere)} biotypes with genes in every split, wanted at least 2; lower --least, or "
            "name other regions for --valid and --test"
        )
    return Made(
        "classification",
        splits,
        rule.describe("genes, those that overlap together"),
        "the gene's biotype, as the annotation has it",
        "forward",
        left_out=+left_out,
        notes=(f"A gene longer than {args.longest:,} bases is cut; start and end are those of what is kept.",),
    )


def _row(reference: Reference, contig: str | None, gene: Feature, longest: int) -> Example | str:
    """The gene's row, or why it has none."""
    if contig is None or gene.end > reference.lengths[contig]:
        return "the genome does not have its place"
    start, end = gene.start, gene.end
    if end - start > longest:
        start, end = (start, start + longest) if gene.strand == "+" else (end - longest, end)
    sequence = reference.window(contig, start, end, gene.strand) or ""
    if 2 * sequence.count("N") > len(sequence):
        return "more than half of it is N"
    return Example(sequence, gene.detail, contig, start, end, gene.strand, gene.gene)
