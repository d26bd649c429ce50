"""A track is the FASTA's bases, end to end, and knows what of them is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyena_ds.data.track import Track
from hyena_ds.errors import UserError
from tests.data.genomes import GENOME, letters_at, scored_mask, tokens_of, track_letters


@pytest.mark.parametrize("split", ["train", "valid"])
def test_reading_across_chunks_and_shards_gives_the_letters_of_the_fasta(shards: Path, split: str) -> None:
    track = Track(shards, split, ())
    truth = tokens_of(track_letters(track))
    assert track.length == len(truth) and len({chunk.shard for chunk in track.chunks}) > 1
    for length in (1, 63, 64, 65, 200):
        for start in range(0, track.length - length + 1, 7):
            assert np.array_equal(track.read(start, length), truth[start : start + length])
    assert np.array_equal(track.read(0, track.length), truth)


def test_every_base_that_is_not_n_is_in_the_track(shards: Path) -> None:
    train = Track(shards, "train", ())
    wanted = "".join(sequence for name, sequence in GENOME.items() if name != "chrV").upper().replace("N", "")
    assert track_letters(train).upper().replace("N", "") == wanted


@pytest.mark.parametrize("ignore", [(), ("n",), ("unknown",), ("n", "unknown")])
def test_scored_counts_equal_counting_the_tokens(shards: Path, ignore: tuple[str, ...]) -> None:
    track = Track(shards, "train", ignore)
    mask = scored_mask(tokens_of(track_letters(track)), ignore)
    starts = np.repeat(np.arange(0, track.length + 1, 3), 5)
    ends = np.minimum(starts + np.tile([0, 1, 17, 64, 300], len(starts) // 5), track.length)
    wanted = [int(mask[a:b].sum()) for a, b in zip(starts, ends, strict=True)]
    assert track.scored(starts, ends).tolist() == wanted


def test_segments_are_the_longest_runs_of_neighbouring_chunks(shards: Path) -> None:
    track = Track(shards, "train", ())
    segments = list(zip(track.segment_starts.tolist(), track.segment_ends.tolist(), strict=True))
    assert sum(end - start for start, end in segments) == track.length
    found = [track.origin(start, end - start, "+") for start, end in segments]
    places = [(origin.chromosome, origin.start, origin.end) for origin in found]
    a, b, c, d = (len(GENOME[name]) for name in ("chrA", "chrB", "chrC", "chrD"))
    assert places == [("chrA", 0, 128), ("chrA", 256, a), ("chrB", 0, b), ("chrC", 0, c), ("chrD", 0, d)]


def test_the_origin_names_the_letters_that_were_read(shards: Path) -> None:
    track = Track(shards, "train", ())
    for start, end in zip(track.segment_starts.tolist(), track.segment_ends.tolist(), strict=True):
        for at in range(start, end - 5, 11):
            assert np.array_equal(track.read(at, 5), tokens_of(letters_at(track, at, 5)))


def test_a_split_that_is_missing_is_named_with_those_that_are_there(shards: Path) -> None:
    with pytest.raises(UserError, match=r"found no 'test' split \(the shards hold: train, valid\)"):
        Track(shards, "test", ())
