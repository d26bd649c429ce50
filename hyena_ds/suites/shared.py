"""What two sets share: equal sequences on either strand, near ones, and overlapping places.

n train sequences, m test sequences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_ds.labelled.sets import LabelledSet
from hyena_ds.labelled.splitting import other_strand
from hyena_ds.suites.kmers import Index, Integers, Joined, Sketch, kept_of, mixed, sketch_of
from hyena_ds.suites.thresholds import ALIKE, SHORTEST_KMER

Flags = NDArray[np.bool_]
_EXAMPLES = 5
_LONGEST_KMER = 21
_CONFIRMED = 0.25
"""Share of the k-mers that two overlapping intervals should share: with fewer they are of different genomes."""


@dataclass(frozen=True)
class Duplicates:
    """Equal sequences."""

    exact: Flags
    """(m): in train, as they are."""
    reverse: Flags
    """(m): in train, on the other strand only."""
    within_train: int
    """Sequences of train that stand there before, on either strand."""
    within_test: int
    conflicting: int
    """Sequences of both sets that have another label elsewhere."""
    examples: tuple[tuple[str, str], ...]
    """Names of a test sequence and of its duplicate in train."""


def find_duplicates(train: LabelledSet, test: LabelledSet) -> Duplicates:
    """Equal sequences of and within the two sets."""
    as_they_are: dict[str, int] = {}
    either: dict[str, int] = {}
    labels: dict[str, set[bytes]] = {}
    rows_of: dict[str, int] = {}
    exact, reverse = np.zeros(len(test), dtype=bool), np.zeros(len(test), dtype=bool)
    examples: list[tuple[str, str]] = []
    for row, text in enumerate(train.sequences):
        as_they_are.setdefault(text, row)
        either.setdefault(_canonical(text), row)
    seen: set[str] = set()
    for row, text in enumerate(test.sequences):
        key = _canonical(text)
        seen.add(key)
        if key in either:
            exact[row] = text in as_they_are
            reverse[row] = not exact[row]
            if len(examples) < _EXAMPLES:
                examples.append((test.names[row], train.names[as_they_are.get(text, either[key])]))
    for data in (train, test):
        for row, text in enumerate(data.sequences):
            labels.setdefault(text, set()).add(label_of(data, row))
            rows_of[text] = rows_of.get(text, 0) + 1
    conflicting = sum(rows_of[text] for text, found in labels.items() if len(found) > 1)
    return Duplicates(exact, reverse, len(train) - len(either), len(test) - len(seen), conflicting, tuple(examples))


def label_of(data: LabelledSet, row: int) -> bytes:
    """The target of a row, to be compared."""
    return np.asarray(data.targets[row]).tobytes()


def _canonical(text: str) -> str:
    return min(text, other_strand(text))


@dataclass(frozen=True)
class Nearest:
    """For each test sequence the train sequence that shares most long k-mers with it, on either strand."""

    row: Integers
    """(m): its number; -1 where none shares one."""
    share: NDArray[np.float64]
    """(m): of the test sequence's k-mers."""
    near_train: int
    """Sequences of train that share ALIKE or more of their k-mers with another one of train."""
    near_test: int
    k: int
    kept: int
    """One in so many k-mers was looked at."""

    @property
    def near(self) -> Flags:
        """(m): whether ALIKE or more is shared; of sequences too short to say, nothing is near."""
        return (self.share >= ALIKE) & (self.k >= SHORTEST_KMER)


class Sketches:
    """Long k-mers of two sets."""

    def __init__(self, train: Joined, test: Joined):
        """k is 21, or half of the usual length where that is less."""
        usual = int(np.median(np.concatenate([train.lengths, test.lengths])))
        self.k = max(1, min(_LONGEST_KMER, usual // 2))
        self.kept = kept_of(train, test)
        self.train, self.test = (sketch_of(one, self.k, self.kept) for one in (train, test))

    def nearest(self) -> Nearest:
        """Look all sequences up. Of rows that share alike one is drawn, the same at every call."""
        index = Index(self.train)
        row, share = _best(index, self.test)
        within = [
            int(np.count_nonzero(_best(of, sketch)[1] >= ALIKE)) if self.k >= SHORTEST_KMER else 0
            for of, sketch in ((index, self.train), (Index(self.test), self.test))
        ]
        return Nearest(row, share, within[0], within[1], self.k, self.kept)


def _best(index: Index, sketch: Sketch) -> tuple[Integers, NDArray[np.float64]]:
    count = len(sketch.starts) - 1
    row, share = np.full(count, -1, dtype=np.int64), np.zeros(count)
    for rows, others, found in index.pairs(sketch):
        order = np.lexsort((mixed(others.astype(np.uint64)), found, rows))
        last = order[np.append(np.diff(rows[order]) != 0, True)]
        row[rows[last]] = others[last]
        share[rows[last]] = found[last] / sketch.sizes[rows[last]]
    return row, share


@dataclass(frozen=True)
class Twins:
    """Test sequences whose places overlap one of train by ALIKE or more of their bases."""

    known: int
    """Test sequences whose place is known."""
    same_label: Flags
    """(m): with a twin of the same label."""
    other_label: Flags
    """(m): with a twin of another label."""
    unlike: int
    """Pairs that overlap by their coordinates, and share no sequence: places in other genomes, which do not count."""
    examples: tuple[tuple[str, str], ...]

    @property
    def any_label(self) -> Flags:
        """(m)."""
        return self.same_label | self.other_label


def find_twins(train: LabelledSet, test: LabelledSet, sketches: Sketches) -> Twins:
    """Overlapping places; contigs of one name in two genomes are told apart by their letters."""
    same, other = np.zeros(len(test), dtype=bool), np.zeros(len(test), dtype=bool)
    unlike = 0
    examples: list[tuple[str, str]] = []
    places, test_places = _by_contig(train), _by_contig(test)
    for contig in sorted(places.keys() & test_places.keys()):
        for row, theirs in _overlapping(*places[contig], *test_places[contig]):
            expected = _overlap(train, theirs, test, row) * sketches.test.sizes[row] / len(test.sequences[row])
            if sketches.test.shared(row, sketches.train, theirs) < _CONFIRMED * expected - 1:
                unlike += 1
                continue
            if not (same[row] or other[row]) and len(examples) < _EXAMPLES:
                examples.append((test.names[row], train.names[theirs]))
            (same if label_of(test, row) == label_of(train, theirs) else other)[row] = True
    known = sum(place is not None for place in test.places)
    return Twins(known, same, other, unlike, tuple(examples))


def _by_contig(data: LabelledSet) -> dict[str, tuple[Integers, Integers]]:
    """(rows, (rows, 2) starts and ends) of each contig."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for row, place in enumerate(data.places):
        if place is not None:
            found[place.contig].append((row, place.start, place.end))
    tables = {contig: np.array(some, dtype=np.int64) for contig, some in found.items()}
    return {contig: (table[:, 0], table[:, 1:]) for contig, table in tables.items()}


def _overlapping(
    rows: Integers, spans: Integers, test_rows: Integers, test_spans: Integers
) -> Sequence[tuple[int, int]]:
    """(test row, train row) of all intervals of which the second covers ALIKE or more of the first."""
    pairs: list[tuple[int, int]] = []
    lengths = spans[:, 1] - spans[:, 0]
    sizes = np.frexp(lengths.astype(np.float64))[1]  # intervals of like length together: a long one looks far back
    for size in np.unique(sizes):
        some = np.flatnonzero(sizes == size)
        some = some[np.argsort(spans[some, 0], kind="stable")]
        starts, longest = spans[some, 0], int(lengths[some].max())
        for row, (start, end) in zip(test_rows.tolist(), test_spans.tolist(), strict=True):
            needed = ALIKE * (end - start)
            first, last = np.searchsorted(starts, (start + needed - longest, np.nextafter(end - needed, np.inf)))
            near = some[first:last]
            covered = np.minimum(spans[near, 1], end) - np.maximum(spans[near, 0], start)
            pairs += [(row, int(one)) for one in rows[near[covered >= needed]]]
    return pairs


def _overlap(train: LabelledSet, row: int, test: LabelledSet, test_row: int) -> int:
    mine, theirs = test.places[test_row], train.places[row]
    assert mine is not None and theirs is not None
    return min(mine.end, theirs.end) - max(mine.start, theirs.start)


@dataclass(frozen=True)
class Shared:
    """What a set of m sequences shares with another one."""

    equal: Flags
    """(m): in the other set, on either strand."""
    reverse: Flags
    """(m): on the other strand only."""
    twin: Flags
    """(m): with a place that overlaps one of the other set by ALIKE or more."""
    near: Flags
    """(m): with ALIKE or more of the long k-mers of one."""
    k: int


def find_shared(other: LabelledSet, mine: LabelledSet) -> Shared:
    """What sequences of `mine` share with those of `other`."""
    duplicates, sketches = find_duplicates(other, mine), Sketches(Joined.of(other.sequences), Joined.of(mine.sequences))
    near = (_best(Index(sketches.train), sketches.test)[1] >= ALIKE) & (sketches.k >= SHORTEST_KMER)
    twin = find_twins(other, mine, sketches).any_label
    return Shared(duplicates.exact | duplicates.reverse, duplicates.reverse, twin, near, sketches.k)
