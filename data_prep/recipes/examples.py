"""What recipes make: labelled sequences with their places, and what is said about how they were made.

Coordinates are in bases, 0-based and half-open.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_prep.recipes.sequences import on_strand
from data_prep.recipes.splitting import Item, Rule, check_regions, divide
from hyena_ds.genome.splits import SPLITS

TOO_NEAR = "nearer than the gap to a split that is better guarded"
REPEATED = "its sequence, on either strand, is that of a row that is kept, or has two labels"
_GUARD = ("test", "valid", "train")

Kind = Literal["classification", "multilabel", "regression", "per_base"]
Strand = Literal["forward", "either"]
"""forward: a label is of the strand that its sequence is written on. either: the reverse complement has the same label."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a split."""

    sequence: str
    label: str
    contig: str = ""
    start: int = 0
    end: int = 0
    strand: str = "+"
    group: str = ""
    """The gene that it is of; empty where it stands alone."""
    more: tuple[str, ...] = ()
    """Further columns, as `Made.more` names them."""


@dataclass(frozen=True)
class Made:
    """The splits of a task, and what its card says of them."""

    kind: Kind
    splits: Mapping[str, Sequence[Example]]
    rule: str
    """How the splits were divided, as a sentence."""
    labels: str
    """What a label says, as a sentence."""
    strand: Strand
    has_places: bool = True
    more: tuple[str, ...] = ()
    """Names of columns beyond the usual."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why candidates became no row -> how many."""
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split: `rows`, and those of each class where labels are classes."""
        found = {}
        for split in SPLITS:
            rows = self.splits[split]
            classes = Counter(row.label for row in rows) if self.kind == "classification" else {}
            found[split] = {"rows": len(rows), **dict(sorted(classes.items()))}
        return found


def part(rows: Sequence[Example], homes: Sequence[int], rule: Rule, left_out: Counter[str]) -> dict[str, list[Example]]:
    """The rows of each split by place; what is near to another split is counted in `left_out`. Raises UserError."""
    items = [Item(row.contig, row.start, row.end, home) for row, home in zip(rows, homes, strict=True)]
    check_regions(rule, {item.contig for item in items})
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row, split in zip(rows, divide(items, rule), strict=True):
        if split is None:
            left_out[TOO_NEAR] += 1
        else:
            splits[split].append(row)
    for found in splits.values():
        found.sort(key=lambda row: (row.contig, row.start, row.end, row.strand, row.label, row.sequence))
    return splits


def without_repeats(splits: Mapping[str, Sequence[Example]], left_out: Counter[str]) -> dict[str, list[Example]]:
    """The rows without those whose sequence stands before, in a better guarded split or earlier in its own, on either strand.

    Copies of a gene have the same sequence at other places. One that has two labels goes altogether.
    """
    labels: dict[str, set[str]] = {}
    for row in itertools.chain.from_iterable(splits.values()):
        labels.setdefault(_either_strand(row), set()).add(row.label)
    seen: set[str] = set()
    kept: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for split in _GUARD:
        for row in splits[split]:
            sequence = _either_strand(row)
            if sequence in seen or len(labels[sequence]) > 1:
                left_out[REPEATED] += 1
            else:
                seen.add(sequence)
                kept[split].append(row)
    return kept


def _either_strand(row: Example) -> str:
    return min(row.sequence, on_strand(row.sequence.encode(), "-"))
