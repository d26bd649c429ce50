"""Which bases belong to which split: the rules of the config applied to one genome.

    by_fraction --> cuts at shares of the bases that are not N --+
    by_chromosome --> whole chromosomes -------------------------+--> Division: regions per split, leaks, counts
    bed --> intervals --leaks refused or trimmed, merged --------+

No base is in two regions, and regions of one split neither overlap nor touch. Coordinates are 0-based and half-open.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.config import PrepConfig
from hyena_ds.errors import UserError
from hyena_ds.genome import bed, letters
from hyena_ds.genome.bed import Interval, Leak, Region
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import Counts
from hyena_ds.genome.splits import SPLITS

Span = tuple[int, int]
BLOCK = 1 << 20
SHOWN_LEAKS = 20


@dataclass(frozen=True)
class Division:
    """The regions of every split, ordered by split, then as the FASTA has its chromosomes, then by start."""

    regions: tuple[Region, ...]
    leaks: tuple[Leak, ...] = ()
    merged_overlapping: int = 0
    """BED regions that overlapped one of their own split."""
    merged_touching: int = 0
    """BED regions that touched one of their own split."""
    outside: int = 0
    """BED regions on chromosomes that the config leaves out."""
    trimmed_bases: int = 0
    """Bases that were cut from a region because a better guarded split has them."""


def divide(config: PrepConfig, config_name: str, genome: Genome) -> Division:
    """Apply the rule of the config. UserError when it names unknown chromosomes, leaks, or leaves a split empty."""
    lengths = genome.lengths()
    chosen = _chosen(config, config_name, lengths)
    splits = config.splits
    if splits.by_fraction is not None:
        division = _by_fraction(splits.by_fraction, chosen, genome)
    elif splits.by_chromosome is not None:
        division = _by_chromosome(splits.by_chromosome, chosen, lengths, config_name)
    else:
        division = _by_bed(config, Path(str(splits.bed)), chosen, lengths)
    found = {region.split for region in division.regions}
    missing = [split for split in SPLITS if split in config.required_splits and split not in found]
    if missing or not found:
        source = splits.bed or config_name
        raise UserError(
            f"{source}: found no {' and no '.join(missing) or 'train, valid or test'} region, wanted at least one; "
            "add one, or name the splits you need in 'required_splits'"
        )
    return division


def _chosen(config: PrepConfig, config_name: str, lengths: dict[str, int]) -> list[str]:
    _check_known(config_name, "chromosomes", config.chromosomes, config.fasta, lengths)
    return [name for name in lengths if not config.chromosomes or name in config.chromosomes]


def _check_known(config_name: str, key: str, names: Collection[str], holder: str, known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"{config_name}: {key}: found the chromosome '{name}', which {holder} does not have "
                f"({bed.some(known)}); correct the name"
            )


def _by_chromosome(
    rule: dict[str, tuple[str, ...]], chosen: list[str], lengths: dict[str, int], config_name: str
) -> Division:
    owner: dict[str, str] = {}
    for split, names in rule.items():
        key = f"splits.by_chromosome.{split}"
        _check_known(config_name, key, names, "the FASTA", lengths)
        _check_known(config_name, key, names, "the list 'chromosomes'", chosen)
        owner.update(dict.fromkeys(names, split))
    for split, names in rule.items():
        if not names:
            owner.update((name, split) for name in chosen if name not in owner)
    return Division(_ordered({(owner[n], n): [(0, lengths[n])] for n in chosen if n in owner and lengths[n]}))


def _by_fraction(rule: dict[str, float], chosen: list[str], genome: Genome) -> Division:
    spans: dict[tuple[str, str], list[Span]] = {}
    lengths = genome.lengths()
    for name in chosen:
        counts = _bases_by_block(genome, name, lengths[name])
        total = int(counts.sum())
        share, begun = 0.0, 0
        for split, fraction in rule.items():
            share += fraction
            # Fractions such as 0.9 + 0.1 may sum to a hair below 1; the last base must not be lost to that.
            wanted = min(total, int(total * share + 1e-6))
            if wanted > begun:
                start = _place_of_base(genome, name, lengths[name], counts, begun)
                end = _place_of_base(genome, name, lengths[name], counts, wanted - 1) + 1
                spans[split, name] = [(start, end)]
                begun = wanted
    return Division(_ordered(spans))


def _bases_by_block(genome: Genome, name: str, length: int) -> Counts:
    """Letters that are not N, in each BLOCK of a record."""
    counts = [
        np.count_nonzero(~letters.IS_N[genome.read(name, start, min(start + BLOCK, length))])
        for start in range(0, length, BLOCK)
    ]
    return np.array(counts, dtype=np.int64)


def _place_of_base(genome: Genome, name: str, length: int, counts: Counts, rank: int) -> int:
    """Where the letter that is not N and has `rank` such letters before it lies."""
    sums = np.cumsum(counts)
    block = int(np.searchsorted(sums, rank, side="right"))
    start = block * BLOCK
    places = np.flatnonzero(~letters.IS_N[genome.read(name, start, min(start + BLOCK, length))])
    return start + int(places[rank - int(sums[block] - counts[block])])


def _by_bed(config: PrepConfig, path: Path, chosen: list[str], lengths: dict[str, int]) -> Division:
    listed = bed.read_bed(path, lengths, config.splits.bed_names, config.limits.bed_bytes)
    inside = set(chosen)
    intervals = [interval for interval in listed if interval.chromosome in inside]
    leaks = bed.find_leaks(intervals)
    if len(leaks) > bed.MOST_LEAKS:
        raise UserError(
            f"{path}:{leaks[0].trimmed.line}: regions of different splits overlap in more than {bed.MOST_LEAKS:,} places, "
            f"the first {leaks[0].describe()}; correct the BED"
        )
    if leaks and config.overlap == "refuse":
        report_leaks(path, leaks)
        raise UserError(
            f"{path}:{leaks[0].trimmed.line}: regions of different splits overlap: {leaks[0].describe()}; "
            f"{len(leaks)} such overlap(s) in all; correct the BED, or set 'overlap: trim' to cut them"
        )
    grouped: dict[tuple[str, str], list[Interval]] = {}
    for interval in intervals:
        grouped.setdefault((interval.split, interval.chromosome), []).append(interval)
    merged: dict[tuple[str, str], list[Span]] = {}
    overlapping = touching = 0
    for place, group in grouped.items():
        merged[place], shared, adjacent = _merge(group)
        overlapping, touching = overlapping + shared, touching + adjacent
    trimmed = {
        (split, name): _subtract(
            spans,
            [s for guard in bed.GUARD[: bed.GUARD.index(split)] for s in merged.get((guard, name), [])],
        )
        for (split, name), spans in merged.items()
    }
    return Division(
        regions=_ordered({place: trimmed[place] for name in chosen for place in trimmed if place[1] == name}),
        leaks=tuple(leaks),
        merged_overlapping=overlapping,
        merged_touching=touching,
        outside=len(listed) - len(intervals),
        trimmed_bases=_bases(merged) - _bases(trimmed),
    )


def report_leaks(path: Path, leaks: list[Leak]) -> None:
    """Name the first leaks on standard error; `overlap: trim` writes them all to LEAKS.txt."""
    print(f"leak report of {path}: {len(leaks)} overlap(s) between splits", file=sys.stderr)
    for leak in leaks[:SHOWN_LEAKS]:
        print(f"  {leak.describe()}", file=sys.stderr)
    if len(leaks) > SHOWN_LEAKS:
        print(f"  … and {len(leaks) - SHOWN_LEAKS} more", file=sys.stderr)


def _merge(group: list[Interval]) -> tuple[list[Span], int, int]:
    """Spans that neither overlap nor touch, and how many intervals overlapped or touched an earlier one."""
    spans: list[Span] = []
    overlapping = touching = 0
    for start, end in sorted((interval.start, interval.end) for interval in group):
        if spans and start <= spans[-1][1]:
            overlapping += start < spans[-1][1]
            touching += start == spans[-1][1]
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans, overlapping, touching


def _subtract(spans: list[Span], guarded: list[Span]) -> list[Span]:
    """What is left of sorted, disjoint spans without the guarded ones."""
    holes = sorted(guarded)
    left: list[Span] = []
    first = 0
    for start, end in spans:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        for number in range(first, len(holes)):
            hole_start, hole_end = holes[number]
            if hole_start >= end:
                break
            if hole_start > start:
                left.append((start, hole_start))
            start = max(start, hole_end)
        if start < end:
            left.append((start, end))
    return left


def _bases(spans: dict[tuple[str, str], list[Span]]) -> int:
    return sum(end - start for group in spans.values() for start, end in group)


def _ordered(spans: dict[tuple[str, str], list[Span]]) -> tuple[Region, ...]:
    """Regions by split; within one, `spans` already has the chromosomes in the order of the FASTA."""
    return tuple(
        Region(name, start, end, split)
        for wanted in SPLITS
        for (split, name), group in spans.items()
        if split == wanted
        for start, end in group
    )
