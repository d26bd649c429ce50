"""Splice sites: windows round donors, acceptors, and places that look like one and are none.

    exons --introns--> sites    gene's strand --GT and AG that no transcript uses--> decoys    both --windows--> three classes

The boundary between exon and intron lies in the middle of a window: a donor's GT begins there, an acceptor's AG ends there.
A decoy has the same two letters at the same place, inside a gene and on its strand, so that the letters alone tell nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.recipes.examples import Example, Made, part, without_repeats
from data_prep.recipes.genes import Gene, Site, SpliceSite, genes_of, splice_sites
from data_prep.recipes.options import Places, add_coordinates, add_exons, add_split, drawn, rule_from
from data_prep.recipes.reading import read_exons
from data_prep.recipes.sequences import Reference, most_contig, opened
from data_prep.recipes.splitting import Homes, Span

INPUTS = ("exons", "genome")
NEITHER = "neither"
_ROUNDING: dict[Site, int] = {"donor": 1, "acceptor": 0}
"""An odd number of donors gives a decoy more, of acceptors one less, so that even genes of one intron have one."""
_NOT_CANONICAL = "a donor without GT or an acceptor without AG"
_AT_EDGE = "the window reaches past the end of its contig, or holds an N"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task splice` takes."""
    add_exons(parser)
    parser.add_argument("--window", type=int, default=600, metavar="BASES", help="length of a sequence (default: 600)")
    add_coordinates(parser, "bed")
    add_split(parser, "the window")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from an exon table and a genome. Raises UserError."""
    exons = read_exons(Path(args.exons), args.coordinates)
    rule = rule_from(args, args.window, even=True)
    with opened(Path(args.genome), work / "genome") as reference:
        names = most_contig(reference, {exon.contig for exon in exons}, Path(args.exons))
        sites = {
            SpliceSite(names[site.contig], site.place, site.strand, site.kind): gene
            for site, gene in splice_sites(exons).items()
            if site.contig in names
        }
        genes = [
            Gene(gene.name, names[gene.contig], gene.strand, gene.start, gene.end)
            for gene in genes_of(exons)
            if gene.contig in names
        ]
        left_out: Counter[str] = Counter()
        left_out["an exon on a contig that the genome does not have"] = sum(exon.contig not in names for exon in exons)
        rows = _site_rows(reference, sites, args.window, left_out)
        rows += _decoys(reference, genes, rows, set(sites), args.window, args.seed)
    homes = Homes(Span(gene.contig, gene.start, gene.end) for gene in genes)
    middles = [(row.start + row.end) // 2 for row in rows]
    splits = part(
        rows, [homes.of(row.contig, at, at + 1) for row, at in zip(rows, middles, strict=True)], rule, left_out
    )
    return Made(
        "classification",
        without_repeats(splits, left_out),
        rule.describe("genes, those that overlap together"),
        "donor: the window's second half begins with the intron; acceptor: it begins with the exon; neither: a GT or AG of the "
        "same place that no transcript of any gene splices at",
        "forward",
        left_out=+left_out,
        notes=("A site that several transcripts or genes share is one row.",),
    )


def _row(reference: Reference, site: SpliceSite, label: str, gene: str, window: int) -> Example | None:
    start, end = site.place - window // 2, site.place + window // 2
    sequence = reference.window(site.contig, start, end, site.strand)
    if sequence is None or "N" in sequence:
        return None
    return Example(sequence, label, site.contig, start, end, site.strand, gene)


def _is_canonical(sequence: str, kind: Site) -> bool:
    half = len(sequence) // 2
    return sequence[half : half + 2] == "GT" if kind == "donor" else sequence[half - 2 : half] == "AG"


def _site_rows(
    reference: Reference, sites: dict[SpliceSite, str], window: int, left_out: Counter[str]
) -> list[Example]:
    rows = []
    for site, gene in sites.items():
        row = _row(reference, site, site.kind, gene, window)
        if row is None:
            left_out[_AT_EDGE] += 1
        elif not _is_canonical(row.sequence, site.kind):
            left_out[_NOT_CANONICAL] += 1
        else:
            rows.append(row)
    return rows


def _decoys(
    reference: Reference, genes: list[Gene], rows: list[Example], sites: set[SpliceSite], window: int, seed: int
) -> list[Example]:
    """A decoy for every two sites of a gene, GT in place of donors and AG of acceptors: in all as many as of either class."""
    wanted = Counter((row.group, row.contig, row.strand, row.label) for row in rows)
    taken = {(site.contig, site.place, site.strand) for site in sites}
    found = []
    for gene in genes:
        for kind, up in _ROUNDING.items():
            count = (wanted[gene.name, gene.contig, gene.strand, kind] + up) // 2
            if not count:
                continue
            for place in drawn(_candidates(reference, gene, kind), seed, gene.name, kind).tolist():
                key = (gene.contig, place, gene.strand)
                site = SpliceSite(gene.contig, place, gene.strand, kind)
                row = None if key in taken else _row(reference, site, NEITHER, gene.name, window)
                if row is not None:
                    taken.add(key)
                    found.append(row)
                    count -= 1
                if not count:
                    break
    return found


def _candidates(reference: Reference, gene: Gene, kind: Site) -> Places:
    """Boundaries within a gene that have a donor's GT, or an acceptor's AG, on the gene's strand."""
    letters = reference.letters(gene.contig, gene.start, min(gene.end, reference.lengths[gene.contig]))
    pair = {("donor", "+"): b"GT", ("donor", "-"): b"AC", ("acceptor", "+"): b"AG", ("acceptor", "-"): b"CT"}
    first, second = pair[kind, gene.strand]
    places = np.flatnonzero((letters[:-1] == first) & (letters[1:] == second)).astype(np.int64)
    ends_there = (kind == "donor") == (gene.strand == "-")
    return gene.start + places + 2 * ends_there
