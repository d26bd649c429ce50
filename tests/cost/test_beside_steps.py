"""What is said of large clusters beside what it was taken from: shapes of a model, indices of shards, the page of measurements.

Calls to the file system, exchanges and files are counted in tests/training/test_scale.py.
"""

from __future__ import annotations

import pytest
import torch

from hyena_ds.bench.many_shards import cost, genome
from hyena_ds.checkpoints.weights_file import shares
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost import beside_steps as beside
from hyena_ds.cost.shape import checkpoint_bytes
from hyena_ds.model.backbone import build_model
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "results" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "layers", "filter_width"), [(8, 2, 64), (64, 3, 16), (4, 1, 100)])
@pytest.mark.parametrize("nodes", [1, 4, 64])
def test_a_checkpoint_falls_on_ranks_as_a_models_parameters_do(
    width: int, layers: int, filter_width: int, nodes: int
) -> None:
    config = ModelConfig(width, layers, 64, filter_width=filter_width)
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in build_model(config, 0).parameters()]
    assert len(sizes) == beside.tensors(config) and max(sizes) == beside.largest_tensor(config)
    ranks = nodes * beside.RANKS_OF_A_NODE
    state = [12 * sum(sizes[rank::ranks]) for rank in range(ranks)]  # whole ones in turn, as engine_state.fragments
    parts = [4 * sum(sizes[at] for at in share) for share in shares(sizes, beside.RANKS_OF_A_NODE)]
    most = max(own + part for own, part in zip(state, [*parts, *[0] * ranks], strict=False))
    node = max(sum(state[first : first + 8]) for first in range(0, ranks, 8)) + sum(parts)
    stage_0, stage_1 = (beside.checkpoint_written(config, stage, nodes) for stage in (0, 1))
    assert most <= stage_0.rank <= 12 * sum(sizes) + 4 * sum(sizes) and node <= stage_0.node
    assert stage_1.state_of_rank == 12 * sum(sizes) / ranks <= stage_0.state_of_rank
    assert stage_0.total == stage_1.total == checkpoint_bytes(config)


def test_indices_caches_and_what_is_fetched_are_what_shards_of_one_genome_count() -> None:
    index = genome("genome50", beside.INDEX_SHARDS // beside.INDEX_GENOMES, 96)
    found = cost([index], 1 << 20, beside.TRAIN_SHARDS_OF_A_GENOME, 1)
    assert beside.INDEX_GENOMES * index.chunks.nbytes / 2**20 == pytest.approx(beside.INDEX_MIB, rel=0.02)
    cached = beside.INDEX_GENOMES * found["cache_gib"] / beside.TRAIN_SHARDS_OF_A_GENOME
    assert cached == pytest.approx(beside.CACHE_GIB, rel=0.01)
    assert found["gib_a_step_a_node"] == pytest.approx(beside.FETCHED_GIB * (1 << 20), rel=0.02)


def test_the_page_of_large_clusters_has_the_same_numbers() -> None:
    for phase, asked in (
        ("start", beside.START),
        ("save", beside.SAVE),
        ("save that removes an older one", beside.SAVE_AND_REMOVE),
        ("resume", beside.RESUME),
    ):
        assert f"| {phase}, busiest rank | {asked.rank} | {asked.rank} | **{asked.rank}** |" in PAGE
    calls, files = ([count(nodes) for nodes in (1, 8, 64)] for count in (beside.RESUME.calls, beside.checkpoint_files))
    assert f"| resume, all ranks | {' | '.join(f'{count:,}' for count in calls)} |" in PAGE
    assert f"| files of a checkpoint | {' | '.join(map(str, files))} |" in PAGE
    assert (
        f"{beside.SHARDS} shards of one source:" in PAGE
        and f"The index takes {beside.INDEX_MIB:g} MiB of a rank" in PAGE
    )
    assert f"comes after {beside.FIRST_STEP_SECONDS:g} s" in PAGE
    assert f"{beside.WATCHED_STEP:g} in CPU seconds |" in PAGE and f" | {beside.COMPARED_STEP:g} |" in PAGE
