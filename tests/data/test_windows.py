"""Windows stay inside segments and hold something to score; an epoch draws each of them once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hyena_ds.data.order import Shuffle, hash64, permutation
from hyena_ds.data.track import Track
from hyena_ds.data.windows import EpochOrder, Windows
from hyena_ds.errors import UserError
from tests.data.genomes import scored_mask, tokens_of, track_letters

IGNORE = ("n", "unknown")


def order_of(windows: Windows, shuffle_shards: int = 2, random_offset: bool = False, seed: int = 5) -> EpochOrder:
    return EpochOrder(windows, shuffle_shards, random_offset, (seed, 0))


def epoch(order: EpochOrder, number: int = 0) -> list[int]:
    count = order.windows.count
    return [order.start(i) for i in range(number * count, (number + 1) * count)]


def tiled(track: Track, L: int, bases: int) -> list[int]:
    """Every L-th base of every segment where a window fits and holds something to score, by looking at the letters."""
    mask = scored_mask(tokens_of(track_letters(track)), IGNORE)
    starts = []
    for first, end in zip(track.segment_starts.tolist(), track.segment_ends.tolist(), strict=True):
        starts += [at for at in range(first, end - bases + 1, L) if mask[at + 1 : at + L].any()]
    return starts


def inside_a_segment(track: Track, start: int, bases: int) -> bool:
    return any(a <= start and start + bases <= b for a, b in zip(track.segment_starts, track.segment_ends, strict=True))


@pytest.mark.parametrize("L", [4, 16, 50, 64, 100])
@pytest.mark.parametrize("extra", [0, 1])
def test_an_epoch_draws_each_window_once(shards: Path, L: int, extra: int) -> None:
    track = Track(shards, "train", IGNORE)
    windows = Windows(track, L, L + extra)
    starts = epoch(order_of(windows))
    assert sorted(starts) == tiled(track, L, L + extra)
    assert windows.count == len(starts)


def test_some_window_of_the_genome_has_nothing_to_score_and_is_left_out(shards: Path) -> None:
    track = Track(shards, "train", IGNORE)
    everything = Windows(Track(shards, "train", ()), 16, 17).count
    assert Windows(track, 16, 17).count < everything


@pytest.mark.parametrize("L", [4, 16, 50, 64])
@pytest.mark.parametrize("random_offset", [False, True])
def test_windows_never_lack_a_scored_target_on_either_strand_and_never_leave_a_segment(
    shards: Path, L: int, random_offset: bool
) -> None:
    track = Track(shards, "train", IGNORE)
    mask = scored_mask(tokens_of(track_letters(track)), IGNORE)
    order = order_of(Windows(track, L, L + 1), random_offset=random_offset)
    for number in range(4):
        starts = epoch(order, number)
        assert len(set(starts)) == len(starts)
        for start in starts:
            assert mask[start + 1 : start + L + 1].any() and mask[start : start + L].any()
            assert inside_a_segment(track, start, L + 1)


def test_a_random_offset_moves_the_windows_from_epoch_to_epoch(shards: Path) -> None:
    windows = Windows(Track(shards, "train", IGNORE), 16, 17)
    fixed, moving = order_of(windows), order_of(windows, random_offset=True)
    assert set(epoch(fixed, 0)) == set(epoch(fixed, 1))
    assert len({frozenset(epoch(moving, number)) for number in range(4)}) == 4


def test_epochs_and_seeds_have_orders_of_their_own_and_an_order_is_repeatable(shards: Path) -> None:
    windows = Windows(Track(shards, "train", IGNORE), 16, 17)
    one = order_of(windows)
    assert epoch(one, 0) != epoch(one, 1)
    assert epoch(one, 0) != epoch(order_of(windows, seed=6), 0)
    backwards = [order_of(windows).start(i) for i in reversed(range(windows.count))]
    assert backwards[::-1] == epoch(one, 0)


@pytest.mark.parametrize("L", [4, 16, 50])
@pytest.mark.parametrize("shuffle_shards", [1, 2, 3])
def test_no_more_than_shuffle_shards_shards_are_open_at_once(shards: Path, L: int, shuffle_shards: int) -> None:
    track = Track(shards, "train", IGNORE)
    order = order_of(Windows(track, L, L + 1), shuffle_shards)
    for number in range(3):
        chunk = np.searchsorted(track.chunk_starts, epoch(order, number), side="right") - 1
        used = [track.chunks[i].shard for i in chunk]
        assert len(set(used)) > 3
        last = {shard: i for i, shard in enumerate(used)}
        open_now: set[int] = set()
        for i, shard in enumerate(used):
            open_now.add(shard)
            assert len(open_now) <= shuffle_shards
            open_now -= {done for done in open_now if last[done] == i}


def test_windows_of_a_group_are_mixed_across_its_shards(shards: Path) -> None:
    track = Track(shards, "train", IGNORE)
    starts = epoch(order_of(Windows(track, 4, 5), shuffle_shards=100))
    chunk = np.searchsorted(track.chunk_starts, starts, side="right") - 1
    used = [track.chunks[i].shard for i in chunk]
    assert sum(a != b for a, b in pairwise(used)) > len(used) / 3


def test_a_context_longer_than_every_segment_is_refused(shards: Path) -> None:
    track = Track(shards, "train", IGNORE)
    longest = int((track.segment_ends - track.segment_starts).max())
    assert Windows(track, longest - 1, longest).count == 1
    with pytest.raises(UserError, match=rf"no window of {longest + 1} bases .* longest gap-free run has {longest}\)"):
        Windows(track, longest, longest + 1)


def test_a_permutation_is_one_and_its_hash_is_splitmix64() -> None:
    assert sorted(permutation(1000, 1, 2).tolist()) == list(range(1000))
    assert permutation(1000, 1, 2).tolist() != permutation(1000, 1, 3).tolist()
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    wanted = 0x9E3779B97F4A7C15
    for part in (3, 2222, 7):
        wanted = mix(wanted ^ part)
    assert int(hash64(3, 2222, 7)) == wanted
    assert hash64(3, 2222, np.array([7, 7])).tolist() == [wanted, wanted]


@pytest.mark.parametrize("count", [1, 2, 16384, 32768, 100_001, 1_200_000])
def test_places_of_a_shuffle_are_those_of_the_permutation_in_any_order_of_asking(count: int) -> None:
    wanted = permutation(count, 3, 1)
    shuffle = Shuffle(count, 3, 1)
    places = [*range(0, count, max(1, count // 100)), count - 1, 0, count // 2]
    assert [shuffle[place] for place in places] == wanted[places].tolist()
    resumed = Shuffle(count, 3, 1)
    assert resumed[count // 3] == wanted[count // 3]
    assert resumed.nbytes <= max(4 * 32768, 4 * count // 50), "a stretch is held, not the whole"


def test_a_shuffle_has_every_number_once_across_the_ends_of_its_stretches() -> None:
    assert sorted(map(Shuffle(70_001, 4).__getitem__, range(70_001))) == list(range(70_001))


def test_a_shuffle_of_ties_is_the_stable_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    def three(*parts: int | np.ndarray) -> np.ndarray:
        return (parts[-1] % 3).astype(np.uint64) << np.uint64(62)

    monkeypatch.setattr("hyena_ds.data.order.hash64", three)
    shuffle, wanted = Shuffle(80_000, 1), permutation(80_000, 1).tolist()
    assert wanted[:3] == [0, 3, 6]
    places = [*range(0, 80_000, 999), *range(26_660, 26_670), *range(53_330, 53_340)]
    assert [shuffle[place] for place in places] == [wanted[place] for place in places]
