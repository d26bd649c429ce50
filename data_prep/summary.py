"""The summary a person reads: what went in, what came out, what was dropped, merged, trimmed, and every checksum.

ShardIndex + ShardRecords + Division + Identity --> SUMMARY.md in the output, and a few lines on the terminal
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.identity import Identity
from data_prep.plan import PlannedShard
from data_prep.regions import Division
from data_prep.writer import ShardRecord
from hyena_ds.data.shards import Chunk, ShardIndex
from hyena_ds.genome import letters
from hyena_ds.genome.splits import SPLITS

SUMMARY_NAME = "SUMMARY.md"
LEAKS_NAME = "LEAKS.txt"
SHOWN = 50
"""Dropped chunks and leaks that the summary lists one by one; LEAKS.txt has all leaks."""


@dataclass(frozen=True)
class SplitCounts:
    """Totals of one split; lengths in bases."""

    split: str
    regions: int
    chunks: int
    dropped: int
    shards: int
    bases: int
    n_bases: int
    unknown_bases: int
    soft_masked: int

    @classmethod
    def of(cls, split: str, division: Division, index: ShardIndex, records: Sequence[ShardRecord]) -> SplitCounts:
        chunks = [chunk for chunk in index.chunks if chunk.split == split]
        return cls(
            split=split,
            regions=sum(region.split == split for region in division.regions),
            chunks=len(chunks),
            dropped=sum(len(record.dropped) for record in records if record.split == split),
            shards=sum(shard.split == split for shard in index.shards),
            bases=sum(chunk.length for chunk in chunks),
            n_bases=_run_bases(chunk.n_runs for chunk in chunks),
            unknown_bases=_run_bases(chunk.unknown_runs for chunk in chunks),
            soft_masked=sum(_soft_masked(chunk) for chunk in chunks),
        )


def _run_bases(runs: Iterable[tuple[tuple[int, int], ...]]) -> int:
    return sum(length for chunk_runs in runs for _, length in chunk_runs)


def _soft_masked(chunk: Chunk) -> int:
    return round(chunk.soft_masked * chunk.length)


def count_splits(division: Division, index: ShardIndex, records: Sequence[ShardRecord]) -> list[SplitCounts]:
    """Totals of every split that has a region, in the order train, valid, test."""
    counts = [SplitCounts.of(split, division, index, records) for split in SPLITS]
    return [count for count in counts if count.regions]


def short_summary(output: Path, counts: Sequence[SplitCounts], division: Division, blanks: int) -> str:
    """A few lines for the terminal."""
    lines = [
        f"{c.split}: {c.bases:,} bases in {c.chunks} chunks and {c.shards} shards"
        f" ({c.dropped} dropped as only N; N {_share(c.n_bases, c.bases)},"
        f" soft-masked {_share(c.soft_masked, c.bases)}, unknown {_share(c.unknown_bases, c.bases)})"
        for c in counts
    ]
    if division.leaks:
        lines.append(f"{len(division.leaks)} overlaps between splits trimmed, {division.trimmed_bases:,} bases cut")
    if blanks:
        lines.append(_dropped_blanks(blanks))
    return "\n".join([*lines, f"shards, index and {SUMMARY_NAME} are in {output}"])


def _dropped_blanks(blanks: int) -> str:
    return f"{blanks:,} blanks within sequences of the FASTA dropped: they are no bases"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def full_summary(
    identity: Identity,
    division: Division,
    plan: Sequence[PlannedShard],
    index: ShardIndex,
    records: Sequence[ShardRecord],
    blanks: int,
) -> str:
    """SUMMARY.md; depends on nothing but the input and the config."""
    counts = count_splits(division, index, records)
    whole = sum(c.bases for c in counts)
    planned = sum(len(shard.chunks) for shard in plan)
    seen = sum((record.letter_counts() for record in records), np.zeros(256, dtype=np.int64))
    sections = [
        [f"# Shards of {index.assembly}", ""],
        ["Coordinates are 0-based and half-open; lengths are in bases.", ""],
        ["| split | regions | chunks | only N, dropped | shards | bases | of all | N | unknown | soft-masked |"],
        ["|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"],
        [_row(c, whole) for c in counts],
        ["", f"Chunks planned: {planned:,}; written: {len(index.chunks):,}."],
        ["", f"Chunk length: {index.chunk_length:,} bases; the last chunk of a region may be shorter."],
        ["", "## Letters", "", *_letters(identity, seen)],
        [f"- {_dropped_blanks(blanks)}"] if blanks else [],
        ["", "## Regions", "", *_regions(division)],
        ["", "## Dropped", "", *_dropped(records)],
        ["", "## Checksums (SHA-256)", "", *_checksums(identity, index)],
    ]
    return "\n".join(line for section in sections for line in section) + "\n"


def _row(c: SplitCounts, whole: int) -> str:
    cells = [
        *(c.split, f"{c.regions:,}", f"{c.chunks:,}", f"{c.dropped:,}", f"{c.shards:,}", f"{c.bases:,}"),
        *(_share(part, of) for part, of in ((c.bases, whole), (c.n_bases, c.bases))),
        *(_share(part, c.bases) for part in (c.unknown_bases, c.soft_masked)),
    ]
    return f"| {' | '.join(cells)} |"


def _letters(identity: Identity, seen: letters.Counts) -> list[str]:
    settings = identity.settings
    kinds = (
        ("A C G T N", letters.IS_PLAIN, "their published ids"),
        ("ambiguous (IUPAC)", letters.IS_AMBIGUOUS, str(settings["ambiguous_letters"])),
        ("other", letters.IS_OTHER, str(settings["other_letters"])),
    )
    lines = []
    for kind, mask, becomes in kinds:
        named = letters.named_counts(seen, mask)
        listed = ", ".join(f"{name} {count:,}" for name, count in named.items()) or "none"
        lines.append(f"- {kind}, mapped to {becomes}: {listed}")
    lower = int(seen[letters.IS_LOWER].sum())
    case = "read as upper case" if settings["fold_case"] else "mapped to unknown"
    return [*lines, f"- lower-case (soft-masked) letters: {lower:,}, {case}"]


def _regions(division: Division) -> list[str]:
    lines = [
        f"- regions after merging: {len(division.regions):,}",
        f"- BED regions merged into one of their own split: {division.merged_overlapping:,} that overlapped it, "
        f"{division.merged_touching:,} that touched it",
        f"- BED regions on chromosomes that the config leaves out: {division.outside:,}",
        f"- overlaps between splits: {len(division.leaks):,}; bases cut from the less guarded split: "
        f"{division.trimmed_bases:,}" + (f" (all of them in {LEAKS_NAME})" if division.leaks else ""),
    ]
    lines += [f"  - {leak.describe()}" for leak in division.leaks[:SHOWN]]
    return lines + _more(len(division.leaks))


def _dropped(records: Sequence[ShardRecord]) -> list[str]:
    dropped = [(record.split, *place) for record in records for place in record.dropped]
    bases = sum(end - start for _, _, start, end in dropped)
    lines = [f"- chunks of nothing but N: {len(dropped):,}, {bases:,} bases"]
    lines += [f"  - {split} {name}:{start}-{end}" for split, name, start, end in dropped[:SHOWN]]
    return lines + _more(len(dropped))


def _more(count: int) -> list[str]:
    return [f"  - … and {count - SHOWN:,} more"] if count > SHOWN else []


def _checksums(identity: Identity, index: ShardIndex) -> list[str]:
    rows = [("input FASTA, as given", identity.fasta["bytes"], identity.fasta["sha256"])]
    if identity.bed is not None:
        rows.append(("input BED, as given", identity.bed["bytes"], identity.bed["sha256"]))
    rows += [(shard.file, shard.bytes, shard.sha256) for shard in index.shards]
    return [
        "| file | bytes | SHA-256 |",
        "|---|--:|---|",
        *(f"| {n} | {size:,} | `{digest}` |" for n, size, digest in rows),
    ]


def leak_report(division: Division) -> str:
    """LEAKS.txt: one line for each overlap between splits."""
    return "".join(f"{leak.describe()}\n" for leak in division.leaks)
