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
    by_chromosome: dict[str, list[Interval]] = {}
    for interval in intervals:
        by_chromosome.setdefault(interval.chromosome, []).append(interval)
    spans: dict[tuple[str, str], list[Span]] = {}
    counts = np.zeros(3, dtype=np.int64)
    for name in chosen:
        trimmed, counted = _merged_and_trimmed(by_chromosome.get(name, []))
        spans |= {(split, name): group for split, group in trimmed.items()}
        counts += counted
    overlapping, touching, trimmed_bases = counts.tolist()
    outside = len(listed) - len(intervals)
    return Division(_ordered(spans), tuple(leaks), overlapping, touching, outside, trimmed_bases)


def report_leaks(path: Path, leaks: list[Leak]) -> None:
    """Name the first leaks on standard error; `overlap: trim` writes them all to LEAKS.txt."""
    print(f"leak report of {path}: {len(leaks)} overlap(s) between splits", file=sys.stderr)
    for leak in leaks[:SHOWN_LEAKS]:
        print(f"  {leak.describe()}", file=sys.stderr)
    if len(leaks) > SHOWN_LEAKS:
        print(f"  … and {len(leaks) - SHOWN_LEAKS} more", file=sys.stderr)


def _merged_and_trimmed(intervals: list[Interval]) -> tuple[dict[str, list[Span]], tuple[int, int, int]]:
    """The spans of each split on one chromosome, which neither touch each other nor hold bases of a better guarded split.

    And how many intervals overlapped an earlier one of their split, how many touched one, and the bases that were cut.
    """
    # Between two cuts that follow each other, every base belongs to the same splits.
    cuts = np.unique([[interval.start, interval.end] for interval in intervals])
    taken = np.zeros(max(len(cuts) - 1, 0), dtype=bool)
    spans: dict[str, list[Span]] = {}
    overlapping = touching = trimmed = 0
    for split in bed.GUARD:
        own = sorted((interval.start, interval.end) for interval in intervals if interval.split == split)
        if own:
            starts, ends = np.array(own).T
            reach = np.maximum.accumulate(ends)[:-1]
            overlapping += int(np.count_nonzero(starts[1:] < reach))
            touching += int(np.count_nonzero(starts[1:] == reach))
            depth = np.zeros(len(cuts), dtype=np.int64)
            np.add.at(depth, np.searchsorted(cuts, starts), 1)
            np.add.at(depth, np.searchsorted(cuts, ends), -1)
            covered = np.cumsum(depth)[:-1] > 0
            trimmed += int(np.diff(cuts)[covered & taken].sum())
            runs = letters.runs(covered & ~taken)
            spans[split] = [(int(cuts[first]), int(cuts[first + count])) for first, count in runs]
            taken |= covered
    return spans, (overlapping, touching, trimmed)


def _ordered(spans: dict[tuple[str, str], list[Span]]) -> tuple[Region, ...]:
    """Regions by split; within one, `spans` already has the chromosomes in the order of the FASTA."""
    return tuple(
        Region(name, start, end, split)
        for wanted in SPLITS
        for (split, name), group in spans.items()
        if split == wanted
        for start, end in group
    )
