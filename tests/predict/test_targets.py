"""Which bases are targets, which windows look at them, and the stream that other predictors see of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hyena_ds.genome.fasta import open_genome
from hyena_ds.predict.targets import Plan, bins, blocks_of, context_windows, stream_of
from hyena_ds.predict.windows import Region, Window
from tests.baselines.test_backoff import codes
from tests.predict.verbs import complement, save_genome


def test_every_context_scores_every_target_once_with_about_that_many_bases_before_it() -> None:
    plan = Plan(context=1000, block=96, targets=960, segment=32)
    block = Window(0, 1000, 1096, 1000)
    for context in plan.contexts:
        windows = list(context_windows(block, context, plan))
        scored = [base for window in windows for base in range(window.scored, window.last)]
        assert scored == list(range(block.first, block.last))
        for window in windows:
            assert window.first >= 0 and window.last - 1 - window.first == context
            assert window.scored - window.first > 0.75 * context
    regions = [Region("c", 0, length, "+") for length in (1095, 1096, 5000, 40)]
    blocks = blocks_of(regions, plan)
    assert len(blocks) == 10 and blocks == sorted(blocks, key=lambda each: (each.region, each.first))
    assert {each.region for each in blocks} <= {1, 2} and len({(each.region, each.first) for each in blocks}) == 10
    parts = plan.in_parts(blocks)
    assert [each for part in parts for each in part.items()] == list(enumerate(blocks))


def test_bins_end_at_powers_of_two() -> None:
    assert bins(np.array([1, 2, 3, 4, 5, 8, 9, 16, 17])).tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5]


def test_the_stream_has_every_base_once_and_breaks_where_some_are_left_out(tmp_path: Path) -> None:
    path, sequences = save_genome(tmp_path)
    (tmp_path / "work").mkdir()
    genome = open_genome(path, tmp_path / "work", 1 << 30).genome
    regions = [Region("chrA", 0, 1500, "+"), Region("chrB", 0, 700, "-")]
    blocks = [Window(0, at, at + 10, at) for at in (50, 60, 85, 200)] + [Window(1, 50, 60, 50)]
    codes_n, block_n = stream_of(genome, regions, blocks, 40)
    whole, other = sequences["chrA"], complement(sequences["chrB"])
    text = f"N{whole[10:95]}N{whole[160:210]}N{other[10:60]}"
    assert codes_n.tolist() == codes(text).tolist()
    for number, block in enumerate(blocks):
        own = codes(sequences["chrA"] if block.region == 0 else other)[block.first : block.last]
        assert codes_n[block_n == number].tolist() == own.tolist()
    assert (block_n >= 0).sum() == 50
