"""Where genes, their introns and their splice sites are.

    exons of transcripts --by gene--> extents    --pairs of neighbours--> introns --their ends--> splice sites

A splice site is the boundary between an exon and an intron: the base that follows it on the forward strand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from data_prep.recipes.reading import Feature

SHORTEST_INTRON = 30
"""Bases; what is shorter is a gap of the annotation that nothing splices."""
Site = Literal["donor", "acceptor"]
_KINDS: tuple[Site, Site] = ("donor", "acceptor")


@dataclass(frozen=True, slots=True)
class Gene:
    """A gene as its exons have it."""

    name: str
    contig: str
    strand: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpliceSite:
    """The boundary before base `place` of the forward strand."""

    contig: str
    place: int
    strand: str
    kind: Site


def genes_of(exons: Iterable[Feature]) -> list[Gene]:
    """The genes, in the order of contig, start and name. Exons of one gene on two strands or contigs make two genes."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for exon in exons:
        extent = found.setdefault((exon.gene, exon.contig, exon.strand), [exon.start, exon.end])
        extent[0], extent[1] = min(extent[0], exon.start), max(extent[1], exon.end)
    genes = [Gene(name, contig, strand, start, end) for (name, contig, strand), (start, end) in found.items()]
    return sorted(genes, key=lambda gene: (gene.contig, gene.start, gene.end, gene.name, gene.strand))


def splice_sites(exons: Iterable[Feature]) -> dict[SpliceSite, str]:
    """Every splice site, and the first by name of the genes that have it."""
    found: dict[SpliceSite, str] = {}
    for contig, strand, gene, start, end in _introns(exons):
        for place, kind in zip((start, end), _KINDS if strand == "+" else _KINDS[::-1], strict=True):
            site = SpliceSite(contig, place, strand, kind)
            found[site] = min(gene, found.get(site, gene))
    return found


def _introns(exons: Iterable[Feature]) -> Iterator[tuple[str, str, str, int, int]]:
    """(contig, strand, gene, start, end) of what lies between two exons of a transcript."""
    transcripts: dict[tuple[str, str, str, str], list[tuple[int, int]]] = {}
    for exon in exons:
        key = (exon.contig, exon.strand, exon.gene, exon.detail)
        transcripts.setdefault(key, []).append((exon.start, exon.end))
    for (contig, strand, gene, _), spans in transcripts.items():
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            if start - end >= SHORTEST_INTRON:
                yield contig, strand, gene, end, start
