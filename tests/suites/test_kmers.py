"""K-mers of many sequences are those of each, and sketches find what a comparison of sets of strings finds."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from hyena_ds.labelled.splitting import other_strand
from hyena_ds.suites import kmers
from hyena_ds.suites.kmers import Index, Joined, counts_of, sketch_of
from tests.suites.drawn import sequences

TEXTS = ["ACGTACGTN", "TTTT", "A", "NNNNNN", "GGNACGTTTGACCAT", *sequences(30, seed=0, length=50)]


def kmers_of(text: str, k: int) -> list[str]:
    return [text[at : at + k] for at in range(len(text) - k + 1) if "N" not in text[at : at + k]]


def index_of(kmer: str) -> int:
    return int("".join(str("ACGT".index(letter)) for letter in kmer), 4)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1 << 22, 60])
def test_counts_are_those_of_each_sequence(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmers, "_CHUNK", chunk)
    found = counts_of(Joined.of(TEXTS), k).toarray()
    assert found.shape == (len(TEXTS), 4**k)
    for row, text in enumerate(TEXTS):
        wanted = Counter(map(index_of, kmers_of(text, k)))
        assert {at: int(found[row, at]) for at in np.flatnonzero(found[row])} == wanted


def expected_pairs(ours: list[set[object]], theirs: list[set[object]], same: bool) -> dict[tuple[int, int], int]:
    found = {}
    for a, b in itertools.product(range(len(ours)), range(len(theirs))):
        if ours[a] & theirs[b] and not (same and a == b):
            found[a, b] = len(ours[a] & theirs[b])
    return found


@pytest.mark.parametrize("chunk", [1 << 22, 60])
@pytest.mark.parametrize("k", [4, 9, 21])
def test_shared_kmers_on_either_strand_are_those_of_sets_of_strings(
    k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmers, "_CHUNK", chunk)
    monkeypatch.setattr(kmers, "_MOST_PAIRS", 100)
    others = [text[7:] for text in TEXTS[5:]] + [other_strand(text) for text in TEXTS]
    sets = [
        [{min(kmer, other_strand(kmer)) for kmer in kmers_of(text, k)} for text in texts] for texts in (TEXTS, others)
    ]
    mine, theirs = (sketch_of(Joined.of(texts), k, keep=1) for texts in (TEXTS, others))
    assert mine.sizes.tolist() == [len(one) for one in sets[0]]
    for sketch, wanted in (
        (theirs, expected_pairs(sets[1], sets[0], False)),
        (mine, expected_pairs(sets[0], sets[0], True)),
    ):
        found: dict[tuple[int, int], int] = defaultdict(int)
        for rows, ours, count in Index(mine).pairs(sketch):
            for row, our, shared in zip(rows.tolist(), ours.tolist(), count.tolist(), strict=True):
                assert (row, our) not in found  # a row is in one block
                found[row, our] = shared
        assert found == wanted
        for (row, our), shared in wanted.items():
            assert sketch.shared(row, mine, our) == shared


def test_words_in_place_tell_places_and_strands_apart() -> None:
    texts = ["ACGTTGCAAC", "ACGTTGTTTT", "TACGTTGCAA", other_strand("ACGTTGCAAC")]
    sketch = sketch_of(Joined.of(texts), 6, keep=1, in_place=True)
    pairs = [pair for rows, ours, count in Index(sketch).pairs(sketch) for pair in zip(rows, ours, count, strict=True)]
    assert pairs == [(0, 1, 1), (1, 0, 1)]


def test_of_a_large_set_one_hash_in_some_is_kept() -> None:
    joined = Joined.of(sequences(200, seed=3, length=300))
    whole, some = (sketch_of(joined, 21, keep) for keep in (1, 10))
    assert set(some.hashes.tolist()) <= set(whole.hashes.tolist())
    assert len(some.hashes) == pytest.approx(len(whole.hashes) / 10, rel=0.05)


def test_lists_that_are_cut_keep_the_same_rows_for_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand near copies share all k-mers: those that are looked at share nearly all, so that copies are still found."""
    monkeypatch.setattr(kmers, "_MOST_WORK", 1000)
    copy = sequences(1, seed=0)[0]
    sketch = sketch_of(Joined.of([copy] * 1000), 21, keep=1)
    found = [(set(ours.tolist()), set(count.tolist())) for _, ours, count in Index(sketch).pairs(sketch)]
    rows = set().union(*(ours for ours, _ in found))
    assert len(rows) == 4 and set().union(*(counts for _, counts in found)) == {int(sketch.sizes[0])}
