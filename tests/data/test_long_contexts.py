"""Windows of millions of bases span chunks and shards; positions and lengths past 2^31 and 2^32 are read right.

L context length, P sequence-parallel size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hyena_ds.data.chunks import Chunk, Chunks
from hyena_ds.data.loader import Slice, make_micro_batch
from hyena_ds.data.shards import Shard, ShardIndex
from hyena_ds.data.stream import Sample, Sources, StageStream
from hyena_ds.data.track import Track
from hyena_ds.data.windows import EpochOrder, Windows
from tests.data.genomes import IGNORED, SEP, data_config, other_strand, plan, scored_mask, tokens_of, write_shards

L = 1 << 21
CHUNK = 300_007
"""Prime to everything: windows and slices begin and end anywhere in a chunk."""
IGNORE = ("n", "unknown")

Tokens = NDArray[np.uint8]


@pytest.fixture(scope="module")
def arm() -> str:
    """A chromosome arm of five million letters, with soft-masked, unknown and N ones in it."""
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGTacgt", dtype=np.uint8), 5_000_011)
    for start, length, letter in ((1_000_003, 9_001, b"N"), (2_400_000, 17, b"R"), (4_199_990, 1, b"n")):
        letters[start : start + length] = letter[0]
    return letters.tobytes().decode()


@pytest.fixture(scope="module")
def long_shards(arm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("arm"), {"chr1": arm, "chrV": arm[: 2 * CHUNK]}, chunk=CHUNK)


@pytest.fixture(scope="module")
def both_strands(arm: str) -> tuple[Tokens, Tokens]:
    return tokens_of(arm), tokens_of(other_strand(arm))


def truth_of(both_strands: tuple[Tokens, Tokens], sample: Sample, bases: int) -> Tokens:
    """A window's tokens, from the letters of the whole arm on either strand."""
    forward, reverse = both_strands
    start = len(forward) - sample.start - bases if sample.reverse else sample.start
    return (reverse if sample.reverse else forward)[start : start + bases]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [0, 1, CHUNK - 1, 999_983, 5_000_011 - L - 1])
def test_a_window_of_two_million_bases_is_the_fastas_whole_and_in_slices(
    long_shards: Path, both_strands: tuple[Tokens, Tokens], start: int, reverse: bool
) -> None:
    sources = Sources(data_config(long_shards), "train")
    sample = Sample(0, start, reverse)
    track = sources.tracks[0]
    ends = np.searchsorted(track.chunk_starts, [start, start + L], side="right") - 1
    assert ends[1] - ends[0] >= 6 and track.chunks[ends[1]].shard - track.chunks[ends[0]].shard >= 2
    whole = truth_of(both_strands, sample, L + 1)
    assert np.array_equal(sources.tokens(sample, L, 0, L + 1), whole)
    targets = np.where(scored_mask(whole[1:], IGNORE), whole[1:].astype(np.int64), IGNORED)
    for P in (2, 4):
        l = L // P
        for rank in range(P):
            batch = make_micro_batch(sources, L, [0], [sample], Slice(0, rank * l, l))
            assert np.array_equal(batch.token_ids_Bl[0], whole[rank * l : rank * l + l])
            assert np.array_equal(batch.targets[0], targets[rank * l : rank * l + l])
    assert sources.scored([sample], L) == (targets != IGNORED).sum()


def test_a_stage_of_two_million_bases_draws_windows_of_the_arm(
    long_shards: Path, both_strands: tuple[Tokens, Tokens]
) -> None:
    config = data_config(long_shards, reverse_complement=True, append_end_token=True)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 2, steps=3))
    samples = [sample for step in range(3) for sample in stream.samples(step)]
    assert len({sample.start for sample in samples}) > 2 and {sample.reverse for sample in samples} == {False, True}
    for sample in samples:
        wanted = np.append(truth_of(both_strands, sample, L), np.uint8(SEP))
        assert np.array_equal(stream.sources.tokens(sample, L, L - 99, 100), wanted[-100:])
        assert stream.sources.scored([sample], L) == scored_mask(wanted[1:], IGNORE).sum()


GIANT = 1 << 30
HEADER = 512
MARKS = tuple(at - 1500 for at in (L, 1 << 31, 1 << 32, (1 << 32) + (1 << 29)))
"""Positions at which 3,000 bases are not zero bytes."""


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardIndex, dict[int, Tokens]]:
    """A chromosome of 5 x 2^30 bases in one shard, a sparse file; three of its chunks are N but for 1,000,000 bases, the last has 10 N."""
    directory = tmp_path_factory.mktemp("giant")
    places = [HEADER + number * (GIANT + HEADER) for number in range(5)]
    chunks = tuple(
        Chunk(
            key=f"c{number}",
            shard=0,
            offset=place,
            assembly="giant",
            chromosome="chr1",
            start=number * GIANT,
            end=(number + 1) * GIANT,
            split="train",
            soft_masked=0.0,
            n_fraction=0.0,
            n_runs=((0, GIANT - 1_000_000),) if number in (1, 2, 3) else ((1000, 10),) if number == 4 else (),
            unknown_runs=(),
        )
        for number, place in enumerate(places)
    )
    marks = {at: np.random.default_rng(at).integers(7, 11, 3000).astype(np.uint8) for at in MARKS}
    with (directory / "train-000000.tar").open("wb") as file:
        file.truncate(places[-1] + GIANT + HEADER)
        for at, tokens in marks.items():
            for position, token in enumerate(tokens.tolist(), at):
                file.seek(places[position // GIANT] + position % GIANT)
                file.write(bytes([token]))
        size = file.seek(0, 2)
    return directory, ShardIndex("giant", GIANT, (Shard("train-000000.tar", "train", size, ""),), Chunks(chunks)), marks


def test_positions_past_two_to_the_thirty_second_are_read_from_where_they_lie(
    giant: tuple[Path, ShardIndex, dict[int, Tokens]],
) -> None:
    directory, index, marks = giant
    track = Track(directory, "train", ("n",), index)
    assert track.length == 5 * GIANT > 1 << 32
    for at, tokens in marks.items():
        assert np.array_equal(track.read(at, 3000), tokens)
        assert np.array_equal(track.read(at - 7, 3010), np.concatenate(([0] * 7, tokens, [0] * 3)))
        assert track.origin(at, 3000, "+").end == at + 3000
    starts = np.array([0, GIANT, (1 << 32) - 2_000_000, 0])
    ends = np.array([GIANT, 1 << 32, (1 << 32) + 5, 5 * GIANT])
    assert track.scored(starts, ends).tolist() == [GIANT, 3_000_000, 1_000_005, 2 * GIANT + 3_000_000 - 10]


def test_windows_past_two_to_the_thirty_second_are_tiled_and_drawn_like_any(
    giant: tuple[Path, ShardIndex, dict[int, Tokens]],
) -> None:
    directory, index, _ = giant
    windows = Windows(Track(directory, "train", ("n",), index), L, L + 1)
    # The last window has no base after it for its last target; of a chunk of N only its end is worth a window.
    assert windows.count == 2 * (GIANT // L) - 1 + 3
    drawn = [EpochOrder(windows, 16, False, (1,)).start(i) for i in range(windows.count)]
    whole = [*range(0, GIANT, L), *range(4 * GIANT, 5 * GIANT - L, L)]
    assert sorted(drawn) == sorted([*whole, *((n + 1) * GIANT - L for n in (1, 2, 3))])
    moved = [EpochOrder(windows, 16, True, (1,)).start(i) for i in range(windows.count)]
    assert all(0 <= start <= 5 * GIANT - L - 1 for start in moved) and max(moved) > 1 << 32


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sequence_of_more_than_two_to_the_thirty_second_bases_is_sliced_right(
    giant: tuple[Path, ShardIndex, dict[int, Tokens]], reverse: bool
) -> None:
    directory, index, marks = giant
    context_length = 5 * GIANT - 1
    sources = Sources(data_config(directory), "train", [index])
    assert sources.windows(context_length)[0].count == 1
    sample = Sample(0, 0, reverse)
    complement = {7: 10, 8: 9, 9: 8, 10: 7}
    for at, tokens in marks.items():
        offset = 5 * GIANT - at - 3000 if reverse else at
        wanted = [complement[token] for token in tokens[::-1].tolist()] if reverse else tokens.tolist()
        batch = make_micro_batch(sources, context_length, [0], [sample], Slice(0, offset, 2999))
        assert batch.token_ids_Bl[0].tolist() == wanted[:-1]
    assert sources.scored([sample], context_length) == 2 * GIANT + 3_000_000 - 10 - 1
