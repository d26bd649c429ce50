"""The stream hands every grid the same tokens in the same order, and counts what is scored before it is read."""

from __future__ import annotations

import multiprocessing
import signal
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hyena_ds.config.schema import DataConfig
from hyena_ds.data.loader import Slice, StepBatch, make_micro_batch, stage_steps
from hyena_ds.data.stream import Sample, Sources, StageStream, row_samples, validation_samples
from hyena_ds.data.windows import Windows
from hyena_ds.errors import UserError
from tests.data.genomes import (
    GENOME,
    IGNORED,
    SEP,
    data_config,
    letters_at,
    other_strand,
    plan,
    scored_mask,
    tokens_of,
    write_shards,
)

L = 16
GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 4)]


def whole_sample(sources: Sources, sample: Sample, context_length: int = L) -> list[int]:
    """All L + 1 tokens of a sample, from the FASTA."""
    letters = letters_at(sources.tracks[sample.source], sample.start, sources.bases(context_length))
    tokens = tokens_of(other_strand(letters) if sample.reverse else letters).tolist()
    return [*tokens, SEP] if sources.config.append_end_token else tokens


def some_samples(sources: Sources) -> list[Sample]:
    """Every window from every 5th base on, on both strands, in every segment."""
    bases = sources.bases(L)
    track = sources.tracks[0]
    starts = [
        at for a, b in zip(track.segment_starts, track.segment_ends, strict=True) for at in range(a, b - bases + 1, 5)
    ]
    return [Sample(0, int(at), reverse) for at in starts for reverse in (False, True)]


@pytest.mark.parametrize("append_end_token", [False, True])
def test_any_slice_of_a_sample_is_that_slice_of_the_whole_on_either_strand(
    shards: Path, append_end_token: bool
) -> None:
    sources = Sources(data_config(shards, append_end_token=append_end_token), "train")
    for sample in some_samples(sources)[::7]:
        whole = whole_sample(sources, sample)
        assert len(whole) == L + 1
        for offset, length in product((0, 3, 8, 12), (2, 5)):
            assert sources.tokens(sample, L, offset, length).tolist() == whole[offset : offset + length]
        assert sources.tokens(sample, L, 0, L + 1).tolist() == whole


@pytest.mark.parametrize("append_end_token", [False, True])
@pytest.mark.parametrize("ignore", [("n", "unknown"), ("n",), ()])
def test_the_scored_count_equals_the_targets_of_all_slices(
    shards: Path, append_end_token: bool, ignore: tuple[str, ...]
) -> None:
    sources = Sources(data_config(shards, append_end_token=append_end_token, ignore=ignore), "train")
    for sample in some_samples(sources):
        parts = [make_micro_batch(sources, L, [0], [sample], Slice(0, offset, 4)) for offset in range(0, L, 4)]
        found = sum(int((part.targets != IGNORED).sum()) for part in parts)
        truth = np.array(whole_sample(sources, sample)[1:], dtype=np.uint8)
        assert sources.scored([sample], L) == found == scored_mask(truth, ignore).sum()


def test_padding_is_never_scored(shards: Path) -> None:
    sources = Sources(data_config(shards, ignore=()), "train")
    batch = make_micro_batch(sources, L, [0, 1], [Sample(0, 0, False), None], Slice(0, 0, L))
    assert (batch.targets != IGNORED).sum(1).tolist() == [L, 0]


def read_grid(config: DataConfig, dp: int, sp: int) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """(step, sample) -> its inputs and targets, put together from the slices of all ranks."""
    stage = plan(L, 8, dp, sp)
    read: dict[tuple[int, int], list[tuple[int, Tensor, Tensor]]] = {}
    scored: dict[int, set[int]] = {}
    for row, column in product(range(dp), range(sp)):
        part = Slice(row, column * (L // sp), L // sp)
        for batch in stage_steps(config, 7, stage, part, 0):
            scored.setdefault(batch.step, set()).add(batch.scored)
            assert len(batch.micro_batches) == stage.accumulation
            for micro in batch.micro_batches:
                for i, number in enumerate(micro.samples_B.tolist()):
                    slices = read.setdefault((batch.step, number), [])
                    slices.append((column, micro.token_ids_Bl[i], micro.targets[i]))
    whole = {}
    for key, slices in read.items():
        assert [column for column, _, _ in slices] == list(range(sp))
        whole[key] = (torch.cat([ids for _, ids, _ in slices]).tolist(), torch.cat([t for _, _, t in slices]).tolist())
    for step, counts in scored.items():
        targets = [t for (at, _), (_, ts) in whole.items() if at == step for t in ts]
        assert counts == {sum(t != IGNORED for t in targets)}
    return whole


@pytest.mark.parametrize("append_end_token", [False, True])
def test_every_grid_reads_the_same_samples_and_knows_the_same_scored_count(
    shards: Path, append_end_token: bool
) -> None:
    config = data_config(shards, reverse_complement=True, append_end_token=append_end_token)
    alone = read_grid(config, 1, 1)
    assert sorted(alone) == list(product(range(6), range(8)))
    for dp, sp in GRIDS[1:]:
        assert read_grid(config, dp, sp) == alone
    stream = StageStream(Sources(config, "train"), 7, plan(L, 8))
    for (step, number), (inputs, targets) in alone.items():
        truth = whole_sample(stream.sources, stream.samples(step)[number])
        assert inputs == truth[:-1]
        assert all(t in (wanted, IGNORED) for t, wanted in zip(targets, truth[1:], strict=True))


def test_micro_steps_of_all_rows_are_the_global_batch_in_order(shards: Path) -> None:
    stage = plan(L, 12, dp=2, micro=3)
    stream = StageStream(Sources(data_config(shards), "train"), 7, stage)
    samples = stream.samples(1)
    parts = [row_samples(samples, stage, row, micro) for micro in range(2) for row in range(2)]
    assert [number for numbers, _ in parts for number in numbers] == list(range(12))
    assert [sample for _, mine in parts for sample in mine] == samples


def test_a_step_is_a_function_of_its_number_alone(shards: Path) -> None:
    config = data_config(shards, shards, weights=(1, 2), reverse_complement=True)

    def stream(seed: int = 7, number: int = 0) -> StageStream:
        return StageStream(Sources(config, "train"), seed, plan(L, number=number))

    sequential = stream()
    wanted = [sequential.samples(step) for step in range(60)]
    jumping = stream()
    assert [jumping.samples(step) for step in reversed(range(60))] == wanted[::-1]
    assert stream().samples(59) == wanted[59]
    assert stream(seed=8).samples(0) != wanted[0] and stream(number=1).samples(0) != wanted[0]


def test_a_batch_of_another_size_changes_no_order(shards: Path) -> None:
    sources = Sources(data_config(shards), "train")
    small, large = StageStream(sources, 7, plan(L, 4)), StageStream(sources, 7, plan(L, 8))
    assert [*small.samples(2), *small.samples(3)] == large.samples(1)


def test_both_strands_come_about_equally_often_and_only_when_asked_for(shards: Path) -> None:
    both = StageStream(Sources(data_config(shards, reverse_complement=True), "train"), 7, plan(L, 400))
    assert 150 < sum(sample.reverse for sample in both.samples(0)) < 250
    one = StageStream(Sources(data_config(shards), "train"), 7, plan(L, 400))
    assert not any(sample.reverse for sample in one.samples(0))


@pytest.mark.parametrize(
    ("weights", "wanted"), [((1, 3), [250, 750]), ((1, 1, 1), [334, 333, 333]), ((0.0012, 0.9988), [1, 999])]
)
def test_sources_have_exactly_their_weight_in_every_thousand(
    shards: Path, weights: tuple[float, ...], wanted: list[int]
) -> None:
    config = data_config(*[shards] * len(weights), weights=weights)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 500))
    for block in range(2):
        drawn = [s.source for step in (2 * block, 2 * block + 1) for s in stream.samples(step)]
        assert np.bincount(drawn, minlength=len(weights)).tolist() == wanted


def test_each_of_two_sources_still_draws_every_window_once_an_epoch(shards: Path) -> None:
    config = data_config(shards, shards, weights=(1, 3), random_offset=False)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 1000))
    drawn = stream.samples(0) + stream.samples(1)
    count = stream.sources.windows(L)[0].count
    for source in range(2):
        first = [sample.start for sample in drawn if sample.source == source][:count]
        assert len(set(first)) == count
    orders = [[s.start for s in drawn if s.source == source][:count] for source in range(2)]
    assert orders[0] != orders[1]


def test_a_weight_that_rounds_to_nothing_is_refused(shards: Path) -> None:
    config = data_config(shards, shards, weights=(1, 10_000))
    with pytest.raises(UserError, match=r"data\.sources: found weights \[1, 10000\].* less than 1/1000"):
        StageStream(Sources(config, "train"), 7, plan(L))


def equal(one: StepBatch, other: StepBatch) -> bool:
    pairs = zip(one.micro_batches, other.micro_batches, strict=True)
    return (one.step, one.scored) == (other.step, other.scored) and all(
        torch.equal(a.token_ids_Bl, b.token_ids_Bl)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.samples_B, b.samples_B)
        for a, b in pairs
    )


def test_any_number_of_workers_and_any_restart_read_the_same_steps(shards: Path) -> None:
    stage, part = plan(L, 4, dp=2, steps=7, first_step=10), Slice(1, 0, L)
    config = data_config(shards, reverse_complement=True)
    alone = list(stage_steps(config, 7, stage, part, 10))
    assert [batch.step for batch in alone] == list(range(10, 17))
    helped = list(stage_steps(data_config(shards, reverse_complement=True, workers=2), 7, stage, part, 10))
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    restarted = list(stage_steps(config, 7, stage, part, 13))
    assert all(equal(a, b) for a, b in zip(alone[3:], restarted, strict=True))


def test_readers_beside_a_device_are_spawned_and_read_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked one would have the device's context, and the locks of NCCL's threads as they stood."""
    stage, part = plan(L, 4, dp=2, steps=3, first_step=10), Slice(1, 0, L)
    alone = list(stage_steps(data_config(shards), 7, stage, part, 10))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    others = {process.pid for process in multiprocessing.active_children()}
    steps = stage_steps(data_config(shards, workers=1), 7, stage, part, 10)
    helped = [next(steps)]
    (reader,) = (process for process in multiprocessing.active_children() if process.pid not in others)
    assert type(reader).__name__ == "SpawnProcess"
    status = Path(f"/proc/{reader.pid}/status").read_text(encoding="ascii")
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "this process hears them again"
    helped += list(steps)
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert next(stage_steps(data_config(shards), 7, stage, part, 12)).step == 12, "without readers nothing is started"


def test_validation_windows_are_always_the_same_at_most_as_many_and_spread_over_the_split(shards: Path) -> None:
    sources = Sources(data_config(shards, reverse_complement=True), "valid")
    everything = validation_samples(sources, L, 10_000)
    windows = Windows(sources.tracks[0], L, L + 1)
    assert len(everything) == windows.count
    for count in (1, 3, 5, len(everything), len(everything) + 1):
        chosen = validation_samples(sources, L, count)
        assert chosen == validation_samples(Sources(sources.config, "valid"), L, count)
        assert len(set(chosen)) == len(chosen) == min(count, len(everything))
        assert not any(sample.reverse for sample in chosen)
        places = [everything.index(sample) for sample in chosen]
        gaps = np.diff([*places, len(everything) + places[0]])
        assert max(gaps) - min(gaps) <= 1


def test_the_origin_is_of_the_bases_that_were_read(shards: Path, tmp_path: Path) -> None:
    sources = Sources(data_config(shards, append_end_token=True), "train")
    origin = sources.origin(Sample(0, 3, True), L)
    assert (origin.assembly, origin.chromosome, origin.start, origin.end, origin.strand) == ("tiny", "chrA", 3, 19, "-")


def test_a_source_without_the_split_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, {"chrA": GENOME["chrA"], "chrV": GENOME["chrV"]})
    with pytest.raises(UserError, match="found no 'test' split"):
        Sources(data_config(shards), "test")
