"""The summary a person reads: what went in, what came out, what was dropped, merged, trimmed, and every checksum.

ShardIndex + ShardRecords + Division + Identity --> SUMMARY.md in the output, and a few lines on the terminal
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.identity import Identity
from data_prep.plan import PlannedShard
from data_prep.regions import Division
from data_prep.writer import ShardRecord
from hyena_ds.data.shards import ShardIndex
from hyena_ds.genome import letters
from hyena_ds.genome.splits import SPLITS

SUMMARY_NAME = "SUMMARY.md"
LEAKS_NAME = "LEAKS.txt"
SHOWN = 50
"""Dropped chunks and leaks that the summary lists one by one; LEAKS.txt has all leaks."""


@dataclass(frozen=True)
class Summary:
    """One prep, once its shards are written."""

    identity: Identity
    division: Division
    plan: Sequence[PlannedShard]
    index: ShardIndex
    records: Sequence[ShardRecord]
    blanks: int
    """Blanks within sequences of the FASTA that were left out."""

    @cached_property
    def splits(self) -> list[SplitCounts]:
        """Totals of every split that has a region, in the order train, valid, test."""
        counts = [SplitCounts(split, self.division, self.index, self.records) for split in SPLITS]
        return [count for count in counts if count.regions]

    def short(self, output: Path) -> str:
        """A few lines for the terminal."""
        lines = [
            f"{c.split}: {c.bases:,} bases in {c.chunks} chunks and {c.shards} shards"
            f" ({c.dropped} dropped as only N; N {_share(c.n_bases, c.bases)},"
            f" soft-masked {_share(c.soft_masked, c.bases)}, unknown {_share(c.unknown_bases, c.bases)})"
            for c in self.splits
        ]
        leaks = len(self.division.leaks)
        if leaks:
            lines.append(f"{leaks} overlaps between splits trimmed, {self.division.trimmed_bases:,} bases cut")
        return "\n".join([*lines, *self._blanks(), f"shards, index and {SUMMARY_NAME} are in {output}"])

    def full(self) -> str:
        """SUMMARY.md; depends on nothing but the input and the config."""
        whole = sum(c.bases for c in self.splits)
        planned = sum(len(shard.chunks) for shard in self.plan)
        sections = [
            [f"# Shards of {self.index.assembly}", ""],
            ["Coordinates are 0-based and half-open; lengths are in bases.", ""],
            ["| split | regions | chunks | only N, dropped | shards | bases | of all | N | unknown | soft-masked |"],
            ["|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"],
            [c.row(whole) for c in self.splits],
            ["", f"Chunks planned: {planned:,}; written: {len(self.index.chunks):,}."],
            ["", f"Chunk length: {self.index.chunk_length:,} bases; the last chunk of a region may be shorter."],
            ["", "## Letters", "", *self._letters(), *(f"- {line}" for line in self._blanks())],
            ["", "## Regions", "", *self._regions()],
            ["", "## Dropped", "", *self._dropped()],
            ["", "## Checksums (SHA-256)", "", "| file | bytes | SHA-256 |", "|---|--:|---|", *self._checksums()],
        ]
        return "\n".join(line for section in sections for line in section) + "\n"

    def _blanks(self) -> list[str]:
        return (
            [f"{self.blanks:,} blanks within sequences of the FASTA dropped: they are no bases"] if self.blanks else []
        )

    def _letters(self) -> Iterator[str]:
        seen = np.zeros(256, dtype=np.int64)
        for record in self.records:
            for byte, count in record.letters.items():
                seen[int(byte)] += count
        settings = self.identity.settings
        for kind, mask, becomes in (
            ("A C G T N", letters.IS_PLAIN, "their published ids"),
            ("ambiguous (IUPAC)", letters.IS_AMBIGUOUS, settings["ambiguous_letters"]),
            ("other", letters.IS_OTHER, settings["other_letters"]),
        ):
            named = letters.named_counts(seen, mask)
            listed = ", ".join(f"{name} {count:,}" for name, count in named.items()) or "none"
            yield f"- {kind}, mapped to {becomes}: {listed}"
        case = "read as upper case" if settings["fold_case"] else "mapped to unknown"
        yield f"- lower-case (soft-masked) letters: {int(seen[letters.IS_LOWER].sum()):,}, {case}"

    def _regions(self) -> list[str]:
        division = self.division
        return [
            f"- regions after merging: {len(division.regions):,}",
            f"- BED regions merged into one of their own split: {division.merged_overlapping:,} that overlapped it, "
            f"{division.merged_touching:,} that touched it",
            f"- BED regions on chromosomes that the config leaves out: {division.outside:,}",
            f"- overlaps between splits: {len(division.leaks):,}; bases cut from the less guarded split: "
            f"{division.trimmed_bases:,}" + (f" (all of them in {LEAKS_NAME})" if division.leaks else ""),
            *_some([leak.describe() for leak in division.leaks]),
        ]

    def _dropped(self) -> list[str]:
        dropped = [(record.split, *place) for record in self.records for place in record.dropped]
        bases = sum(end - start for _, _, start, end in dropped)
        listed = [f"{split} {name}:{start}-{end}" for split, name, start, end in dropped]
        return [f"- chunks of nothing but N: {len(dropped):,}, {bases:,} bases", *_some(listed)]

    def _checksums(self) -> list[str]:
        inputs = {"input FASTA, as given": self.identity.fasta, "input BED, as given": self.identity.bed}
        rows = [(name, file["bytes"], file["sha256"]) for name, file in inputs.items() if file is not None]
        rows += [(shard.file, shard.bytes, shard.sha256) for shard in self.index.shards]
        return [f"| {name} | {size:,} | `{digest}` |" for name, size, digest in rows]


class SplitCounts:
    """Totals of one split; lengths in bases."""

    def __init__(self, split: str, division: Division, index: ShardIndex, records: Sequence[ShardRecord]):
        chunks = [chunk for chunk in index.chunks if chunk.split == split]
        self.split = split
        self.regions = sum(region.split == split for region in division.regions)
        self.chunks = len(chunks)
        self.dropped = sum(len(record.dropped) for record in records if record.split == split)
        self.shards = sum(shard.split == split for shard in index.shards)
        self.bases = sum(chunk.length for chunk in chunks)
        self.n_bases = sum(length for chunk in chunks for _, length in chunk.n_runs)
        self.unknown_bases = sum(length for chunk in chunks for _, length in chunk.unknown_runs)
        self.soft_masked = sum(round(chunk.soft_masked * chunk.length) for chunk in chunks)

    def row(self, whole: int) -> str:
        """A line of the table; `whole` are the bases of all splits."""
        counts = (self.regions, self.chunks, self.dropped, self.shards, self.bases)
        cells = [self.split, *(f"{count:,}" for count in counts), _share(self.bases, whole)]
        cells += [_share(part, self.bases) for part in (self.n_bases, self.unknown_bases, self.soft_masked)]
        return f"| {' | '.join(cells)} |"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _some(lines: Sequence[str]) -> list[str]:
    more = [f"… and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return [f"  - {line}" for line in [*lines[:SHOWN], *more]]
