"""Regions of a genome as windows that a model can look at, and the windows as parts of about the same size.

    FASTA, BED --regions_of--> Regions, each with a strand --windows_of--> windows --into_parts--> parts
    window --tokens--> uint8 ids in reading direction

A region that is longer than the context is read in windows that overlap: a base is scored by the first window that reaches
it, so that all but the first bases of a region have at least `context - stride` bases before them.

Positions in a region count in reading direction: from its end on the reverse strand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_ds.genome.bed import read_named
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import token_table
from hyena_ds.genome.tokenizer import PAD, reverse_complement

PART_BASES = 1 << 20
_MOST_OF_A_PART = 4096
"""Windows."""
_LARGEST_BED = 1 << 30
"""Bytes."""
TOKENS = token_table(fold_case=True, ambiguous_to_n=False, other_to_n=False)
"""Ids of the letters of a FASTA, as `hyena-ds prep` gives them by default."""


@dataclass(frozen=True, slots=True)
class Region:
    """Bases [start, end) of a contig, read on a strand, + or -."""

    contig: str
    start: int
    end: int
    strand: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """Bases [first, last) of a region, of which those from `scored` on count."""

    region: int
    first: int
    last: int
    scored: int


def regions_of(genome: Genome, bed: Path | None, strands: str | None) -> list[Region]:
    """The regions of a BED, or all whole contigs, in their order.

    `strands` is + or -, or "both" for two regions each; None: what the BED says, else +. Raises UserError for a BED that is
    none, or of another genome.
    """
    lengths = genome.lengths()
    if bed is None:
        found = [(contig, 0, length, "", ".") for contig, length in lengths.items() if length]
    else:
        found = [(r.chromosome, r.start, r.end, r.name, r.strand) for r in read_named(bed, lengths, _LARGEST_BED)]
    regions = []
    for contig, start, end, name, own in found:
        wanted = strands or (own if own != "." else "+")
        regions += [Region(contig, start, end, strand, name) for strand in ("+-" if wanted == "both" else wanted)]
    return regions


def windows_of(regions: Sequence[Region], context: int, stride: int) -> list[Window]:
    """Windows of at most `context` bases, of which every one but a region's first adds at most `stride` bases."""
    windows = []
    for number, region in enumerate(regions):
        length = region.end - region.start
        done = min(context, length)
        windows.append(Window(number, 0, done, 0))
        while done < length:
            last = min(done + stride, length)
            windows.append(Window(number, last - context, last, done))
            done = last
    return windows


def into_parts(windows: Iterable[Window], most: int = PART_BASES) -> list[list[Window]]:
    """The windows in their order, in parts of at most so many bases, about a million, or of one window."""
    parts: list[list[Window]] = []
    bases = most
    for window in windows:
        length = window.last - window.first
        if bases + length > most or not parts or len(parts[-1]) == _MOST_OF_A_PART:
            parts.append([])
            bases = 0
        parts[-1].append(window)
        bases += length
    return parts


def tokens(genome: Genome, region: Region, window: Window) -> NDArray[np.uint8]:
    """Ids of a window, in reading direction."""
    if region.strand == "+":
        return TOKENS[genome.read(region.contig, region.start + window.first, region.start + window.last)]
    return reverse_complement(TOKENS[genome.read(region.contig, region.end - window.last, region.end - window.first)])


def into_batches(lengths: Sequence[int], batch: int | None, device_is_cpu: bool) -> list[list[int]]:
    """Numbers of sequences that go through the model together, those of about one length beside each other.

    Without `batch` a pass has about 16,384 tokens on a CPU, and a million on a GPU.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches: list[list[int]] = []
    while order:
        most = batch or max(1, (1 << 14 if device_is_cpu else 1 << 20) // max(1, lengths[order[0]]))
        batches.append(order[:most])
        order = order[most:]
    return batches


def padded(ids: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Sequences (n) of which the first is the longest, as one array (B, L), padded on the right."""
    ids_BL = np.full((len(ids), len(ids[0])), PAD, dtype=np.uint8)
    for row, ids_n in enumerate(ids):
        ids_BL[row, : len(ids_n)] = ids_n
    return ids_BL
