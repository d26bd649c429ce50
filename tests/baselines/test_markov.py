"""The Markov baselines against dictionaries of strings, counted letter by letter from the FASTA and never from the shards."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from hyena_ds.baselines import markov
from hyena_ds.baselines.markov import bits, markov_losses
from hyena_ds.data.stream import Sample, Sources, validation_samples
from tests.data.genomes import GENOME, data_config, other_strand, write_shards

ORDERS = (0, 2, 5)
LETTERS = random.Random(17)
OTHER = {
    # Far from GENOME's frequencies, with N and unknown letters at its ends and within reach of each other.
    "chr1": "".join(LETTERS.choices("ACGT", (5, 1, 1, 3), k=150)) + "NNACGNNACGTTWACGTAC" + "ACACAC" * 20,
    "chr2": "ACG",
    "chrV": "R" + "".join(LETTERS.choices("ACGT", (4, 1, 2, 3), k=140)) + "NAN" + "ACACACGT" * 6,
}
RECORDS = (GENOME, OTHER)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of both genomes, in chunks of 64 bases: segments go over chunks and shards, and over gaps of N."""
    first, second = (write_shards(tmp_path_factory.mktemp("genome"), records) for records in RECORDS)
    return first, second


def known(letters: str) -> bool:
    return set(letters) <= set("ACGT")


def counted(sequences: Iterable[str], length: int, both_strands: bool) -> Counter[str]:
    """Every run of `length` known letters, of both strands or of one."""
    found: Counter[str] = Counter()
    for sequence in sequences:
        for strand in (sequence.upper(), other_strand(sequence))[: 1 + both_strands]:
            for start in range(len(strand) - length + 1):
                if known(mer := strand[start : start + length]):
                    found[mer] += 1
    return found


def by_hand(
    mers: Counter[str], windows: Iterable[str], order: int, letters: int, pseudo_count: float = 1.0
) -> tuple[float, int]:
    """Sum of -log P over the known letters of the windows but each one's first, and how many those are.

    P is from the last letters of the counted mers; the context is the known letters in a row before, at most `order`.
    """
    total, scored = 0.0, 0
    ends: list[Counter[str]] = []
    for length in range(1, order + 2):
        ends.append(Counter())
        for mer, count in mers.items():
            ends[-1][mer[letters - length :]] += count
    for window in windows:
        for at in range(1, len(window)):
            if not known(window[at]):
                continue
            context = ""
            while len(context) < min(order, at) and known(window[at - 1 - len(context)]):
                context = window[at - 1 - len(context)] + context
            of = ends[len(context)]
            seen = sum(of[context + letter] for letter in "ACGT")
            total -= math.log((of[context + window[at]] + pseudo_count) / (seen + 4 * pseudo_count))
            scored += 1
    return total, scored


def letters_of(held_out: Sources, samples: Iterable[Sample], context_length: int) -> list[str]:
    """What the FASTA files have where the samples lie, on the samples' strands."""
    found = []
    for sample in samples:
        origin = held_out.origin(sample, context_length)
        letters = RECORDS[sample.source][origin.chromosome][origin.start : origin.end].upper()
        found.append(other_strand(letters) if sample.reverse else letters)
    return found


@pytest.mark.parametrize("context_length", [3, 16, 100])
@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("end_token", [False, True])
def test_the_losses_are_those_of_dictionaries_of_strings(
    context_length: int, both_strands: bool, end_token: bool, shards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are read in blocks of 37 bases, so that mers lie over the blocks' boundaries too."""
    monkeypatch.setattr(markov, "_BLOCK", 37)
    config = data_config(*shards, reverse_complement=both_strands, append_end_token=end_token)
    train, held_out = Sources(config, "train"), Sources(config, "valid")
    samples = validation_samples(held_out, context_length, 1000)
    assert {sample.source for sample in samples} == {0, 1}
    samples += [Sample(sample.source, sample.start, not sample.reverse) for sample in samples[::3]]
    windows = letters_of(held_out, samples, context_length)
    assert any("N" in window for window in windows)
    sequences = [letters for records in RECORDS for name, letters in records.items() if name != "chrV"]
    mers = counted(sequences, max(ORDERS) + 1, both_strands)
    losses = markov_losses(train, held_out, samples, context_length, ORDERS)
    assert tuple(losses) == ORDERS
    for order in ORDERS:
        total, scored = by_hand(mers, windows, order, max(ORDERS) + 1)
        assert math.isclose(losses[order], total / scored, rel_tol=1e-9), order


def test_another_smoothing_or_one_count_more_is_seen(shards: tuple[Path, Path]) -> None:
    """The comparison above is fine enough to tell them apart."""
    config = data_config(shards[0])
    held_out = Sources(config, "valid")
    samples = validation_samples(held_out, 16, 1000)
    windows = letters_of(held_out, samples, 16)
    mers = counted((letters for name, letters in GENOME.items() if name != "chrV"), 6, both_strands=False)
    losses = markov_losses(Sources(config, "train"), held_out, samples, 16, ORDERS)
    in_windows = next(mer for window in windows for at in range(10) if known(mer := window[at : at + 6]))
    one_more = mers + Counter({in_windows: 1})
    for order in ORDERS:
        total, scored = by_hand(mers, windows, order, 6)
        assert math.isclose(losses[order], total / scored, rel_tol=1e-9)
        for others in (by_hand(mers, windows, order, 6, pseudo_count=0.999), by_hand(one_more, windows, order, 6)):
            assert not math.isclose(losses[order], others[0] / scored, rel_tol=1e-9)


def test_the_orders_beside_it_give_a_shorter_order_fewer_letters_to_count(shards: tuple[Path, Path]) -> None:
    """All orders count the ends of the longest one's mers: those with too few known letters before them are left out."""
    config = data_config(shards[0])
    train, held_out = Sources(config, "train"), Sources(config, "valid")
    samples = validation_samples(held_out, 16, 1000)
    windows = letters_of(held_out, samples, 16)
    for orders in ((0,), (0, 3)):
        letters = max(orders) + 1
        mers = counted((letters for name, letters in GENOME.items() if name != "chrV"), letters, both_strands=False)
        total, scored = by_hand(mers, windows, 0, letters)
        assert math.isclose(markov_losses(train, held_out, samples, 16, orders)[0], total / scored, rel_tol=1e-9)


def test_nats_and_bits() -> None:
    assert math.isclose(bits(math.log(4)), 2.0)
