"""Divides places into train, valid and test so that no two splits are near each other.

    home of each item --regions by name, else contiguous blocks--> split --what lies within the gap goes--> split or None

Items of one home stay together: genes that overlap are given the same one. Where two splits come too near each other, the
better guarded one keeps its items: test before valid before train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

LAST = 1 << 62
_REGION = re.compile(r"([^:\s]+)(?::(\d{1,18})-(\d{0,18}))?")


@dataclass(frozen=True, slots=True)
class Span:
    """Bases `[start, end)` of a contig."""

    contig: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Item:
    """Something to be put into a split."""

    contig: str
    start: int
    end: int
    home: int
    """A base that decides by its place; items of one home on a contig are never parted."""


@dataclass(frozen=True)
class Rule:
    """Which places are held out: named regions, or the last shares of what there is."""

    gap: int
    """Bases between two splits, at least."""
    valid: tuple[Span, ...] = ()
    test: tuple[Span, ...] = ()
    valid_share: float = 0.15
    test_share: float = 0.15

    def describe(self, unit: str) -> str:
        """The rule as a sentence; `unit` is what is divided."""
        named = [
            f"{split} is {', '.join(_text(span) for span in spans)}"
            for split, spans in (("test", self.test), ("valid", self.valid))
            if spans
        ]
        train = 1 - self.valid_share - self.test_share
        shares = f"contiguous blocks of {unit}: the first {train:.0%} train, then {self.valid_share:.0%} valid, then {self.test_share:.0%} test"
        where = "; ".join(named) + "; the rest of these contigs is train; elsewhere " + shares if named else shares
        return f"{where}; {self.gap:,} bases or more between splits"


def parse_regions(option: str, text: str | None) -> tuple[Span, ...]:
    """The regions of an option: CONTIG, CONTIG:START-END or CONTIG:START-, with commas between. Raises UserError."""
    spans = []
    for word in (text or "").split(",") if text else ():
        match = _REGION.fullmatch(word)
        start, end = (int(match[2] or 0), int(match[3] or LAST)) if match else (0, 0)
        if match is None or start >= end:
            raise UserError(
                f"{option}: found '{in_one_line(word, MOST_QUOTED)}', wanted CONTIG or CONTIG:START-END with start below end, "
                "0-based, with commas between"
            )
        spans.append(Span(match[1], start, end))
    return tuple(spans)


def check_regions(rule: Rule, contigs: Iterable[str]) -> None:
    """Raise UserError where regions of valid and test overlap, or name contigs that are not there."""
    known = set(contigs)
    for option, spans in (("--valid", rule.valid), ("--test", rule.test)):
        for span in spans:
            if span.contig not in known:
                raise UserError(
                    f"{option}: found the contig '{span.contig}', which nothing lies on; it has {_some(known)}"
                )
    for held in rule.test:
        for other in rule.valid:
            if held.contig == other.contig and held.start < other.end and other.start < held.end:
                raise UserError(
                    f"--valid: found {_text(other)}, which overlaps {_text(held)} of --test; wanted regions apart"
                )


def divide(items: Sequence[Item], rule: Rule) -> list[str | None]:
    """The split of each item; None where it is too near to a better guarded one."""
    splits = _assign(items, rule)
    guarded: list[Item] = []
    for name in ("test", "valid", "train"):
        mine = [number for number, split in enumerate(splits) if split == name]
        near = _near([items[number] for number in mine], guarded, rule.gap)
        for number, is_near in zip(mine, near, strict=True):
            if is_near:
                splits[number] = None
        guarded += [items[number] for number in mine if splits[number] is not None]
    return splits


def clusters(spans: Iterable[Span]) -> list[Span]:
    """Spans that share bases, as one; by contig and start."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.contig, span.start, span.end)):
        last = merged[-1] if merged else None
        if last is not None and last.contig == span.contig and span.start < last.end:
            merged[-1] = Span(last.contig, last.start, max(last.end, span.end))
        else:
            merged.append(span)
    return merged


class Homes:
    """The cluster that a place lies in, as the base in its middle."""

    def __init__(self, spans: Iterable[Span]):
        """The clusters are those of `spans`."""
        by_contig: dict[str, list[Span]] = {}
        for span in clusters(spans):
            by_contig.setdefault(span.contig, []).append(span)
        self._by_contig = {
            contig: (np.array([span.start for span in group]), np.array([span.end for span in group]))
            for contig, group in by_contig.items()
        }

    def of(self, contig: str, start: int, end: int) -> int:
        """The home of `[start, end)`: of the first cluster that it shares a base with, or else its own middle."""
        starts, ends = self._by_contig.get(contig, (np.zeros(0), np.zeros(0)))
        first = int(np.searchsorted(ends, start, side="right"))
        if first < len(starts) and starts[first] < end:
            return int(starts[first] + ends[first]) // 2
        return (start + end) // 2


def _assign(items: Sequence[Item], rule: Rule) -> list[str | None]:
    named = {span.contig for span in (*rule.valid, *rule.test)}
    splits: list[str | None] = [None] * len(items)
    rest = []
    for number, item in enumerate(items):
        if item.contig not in named:
            rest.append(number)
        elif any(_holds(span, item) for span in rule.test):
            splits[number] = "test"
        else:
            splits[number] = "valid" if any(_holds(span, item) for span in rule.valid) else "train"
    rest.sort(key=lambda number: (items[number].contig, items[number].home))
    places = [(items[number].contig, items[number].home) for number in rest]
    if rest:
        share = rule.valid_share + rule.test_share
        first_valid = places[min(len(rest) - 1, round(len(rest) * (1 - share)))]
        first_test = places[min(len(rest) - 1, round(len(rest) * (1 - rule.test_share)))]
        for number, place in zip(rest, places, strict=True):
            splits[number] = "train" if place < first_valid else "valid" if place < first_test else "test"
    return splits


def _holds(span: Span, item: Item) -> bool:
    return span.contig == item.contig and span.start <= item.home < span.end


def _near(items: Sequence[Item], guarded: Sequence[Item], gap: int) -> list[bool]:
    """Whether fewer than `gap` bases lie between each item and some guarded one, or they share bases."""
    held = clusters(Span(item.contig, item.start - gap, item.end + gap) for item in guarded)
    by_contig: dict[str, list[Span]] = {}
    for span in held:
        by_contig.setdefault(span.contig, []).append(span)
    edges = {
        contig: (np.array([span.start for span in group]), np.array([span.end for span in group]))
        for contig, group in by_contig.items()
    }
    found = []
    for item in items:
        if item.contig not in edges:
            found.append(False)
            continue
        starts, ends = edges[item.contig]
        first = int(np.searchsorted(ends, item.start, side="right"))
        found.append(first < len(starts) and bool(starts[first] < item.end))
    return found


def _text(span: Span) -> str:
    if span.start == 0 and span.end == LAST:
        return span.contig
    return f"{span.contig}:{span.start:,}-{'' if span.end == LAST else f'{span.end:,}'}"


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (" …" if len(listed) > 4 else "")
