"""Chunks in columns are the chunks that were put in, small, and as many windows cost no more than few."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyena_ds.bench.many_shards import cost, genome
from hyena_ds.data.chunks import Chunks
from hyena_ds.data.order import permutation
from hyena_ds.data.shards import parse_index, read_index
from hyena_ds.data.track import Track
from hyena_ds.data.windows import EpochOrder, Windows
from hyena_ds.errors import UserError

IGNORE = ("n", "unknown")


def test_what_is_taken_out_is_what_was_put_in(shards: Path) -> None:
    index = read_index(shards)
    rows = list(index.chunks)
    assert index.to_json() == (shards / "index.json").read_text()
    assert any(row.n_runs for row in rows) and any(row.unknown_runs for row in rows)
    assert [index.chunks[-1], *index.chunks[1:3]] == [rows[-1], rows[1], rows[2]]
    assert [*index.chunks.json_rows()] == [json.dumps(vars(row)) for row in rows]
    again = pickle.loads(pickle.dumps(index))
    assert again == index and again.fingerprint == index.fingerprint and [*again.chunks] == rows
    with pytest.raises(IndexError):
        index.chunks[len(rows)]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"start": 1},
        {"soft_masked": 0.25},
        {"n_runs": ((1, 1),)},
        {"chromosome": "x"},
        {"n_fraction": 0},
    ],
)
def test_another_chunk_makes_another_fingerprint(shards: Path, change: dict[str, object]) -> None:
    rows = [replace(chunk, n_fraction=0.0) for chunk in read_index(shards).chunks]
    others = [*rows[:2], replace(rows[2], **change), *rows[3:]]
    assert Chunks(rows) == Chunks(rows) != Chunks(others)
    assert [*Chunks(others).json_rows()] == [json.dumps(vars(row)) for row in others]
    assert [*Chunks(others)] == others and type(Chunks(others)[2].n_fraction) is type(others[2].n_fraction)


def test_an_index_is_100_bytes_a_chunk_so_that_3131_shards_take_a_rank_50_mib() -> None:
    index = parse_index(genome("genome7", 31, 8).to_json().encode(), "index")
    chunks = 101 * 31 * 96
    assert len(index.chunks) == 31 * 8
    for bytes_ in (index.chunks.nbytes, len(pickle.dumps(index)) - len(pickle.dumps(index.shards))):
        assert bytes_ / len(index.chunks) * chunks < 50 * 2**20


def test_windows_are_counted_by_what_is_not_scored_and_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times as many windows of the same chunks: the longest array that is made on the way stays what it was."""
    index = genome("genome", 31, 8)
    made: list[int] = []
    searchsorted = np.searchsorted

    def counted(table: np.ndarray, values: np.ndarray, side: str = "left") -> np.ndarray:
        made.append(np.size(values))
        return searchsorted(table, values, side=side)

    monkeypatch.setattr(np, "searchsorted", counted)
    longest, windows = [], []
    for length in (100_000, 1000):
        made.clear()
        windows.append(Windows(Track("nowhere", "train", IGNORE, index), length, length + 1).count)
        longest.append(max(made))
    assert windows[1] > 99 * windows[0] and longest[1] == longest[0] <= 2 * 31 * 8


def test_a_step_of_many_genomes_holds_the_orders_of_the_groups_that_it_draws_from_and_nothing_else() -> None:
    indices = [genome(f"genome{number}", 31, 4) for number in range(5)]
    one, all_ = (cost(indices, 4096, together, 64) for together in (1, 31))
    assert one["windows"] == all_["windows"] == all_["order_mib"] * 2**18, "so few are sorted at once"
    assert all_["order_mib"] >= 25 * one["order_mib"] > 0
    short = cost(indices[:1], 64, 31, 64)
    assert short["order_mib"] * 2**18 == pytest.approx(short["windows"] / 64, rel=0.05), "of more, a stretch"
    assert all_["cache_gib"] == pytest.approx(5 * 30 * indices[0].shards[0].bytes / 2**30)
    assert one["cache_gib"] == pytest.approx(all_["cache_gib"] / 30)


def test_an_order_of_ties_is_the_stable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyena_ds.data.order.hash64", lambda *parts: (parts[-1] % 3).astype(np.uint64))
    assert permutation(7, 1).tolist() == [0, 3, 6, 1, 4, 2, 5]


@pytest.mark.parametrize("L", [1, 2, 3, 16])
def test_kept_slots_and_their_numbers_are_those_that_are_found_one_by_one(shards: Path, L: int) -> None:
    track = Track(shards, "train", IGNORE)
    if L == 1:
        with pytest.raises(UserError, match="found no window of 2 bases with something to score"):
            Windows(track, 1, 2)
        return
    windows = Windows(track, L, L + 1)
    every = np.arange(int(windows._first_slot[-1]))
    starts = windows.starts(every)
    kept = every[track.scored(starts + 1, starts + L) > 0]
    assert windows.kept(np.arange(windows.count)).tolist() == kept.tolist()
    assert windows.kept_before.tolist() == [int((kept < bound).sum()) for bound in windows._shard_bounds]
    # The order of a group: its shards' kept slots, one shard after the other, shuffled.
    order = EpochOrder(windows, 2, False, (5, 0))
    group = [int(shard) for shard in permutation(len(windows.kept_per_shard), 5, 0, 0, 0)[:2]]
    slots = [
        slot
        for shard in group
        for slot in kept
        if windows._shard_bounds[shard] <= slot < windows._shard_bounds[shard + 1]
    ]
    shuffled = [slots[number] for number in permutation(len(slots), 5, 0, 1, 0, 0)]
    assert [order.start(number) for number in range(len(slots))] == windows.starts(np.array(shuffled)).tolist()
