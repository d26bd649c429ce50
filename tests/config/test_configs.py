"""Every run that ships parses, divides over its ranks and, where published, has the published number of weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyena_ds.config.arithmetic import describe, plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.model.backbone import HyenaDNA
from tests.paths import ROOT

PATHS = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "configs" / "experiments").glob("*.yaml"))]
PUBLISHED = {
    "tiny-1k": (436_096, 1_026),
    "tiny-1k-d256": (1_641_088, 1_026),
    "tiny-16k": (436_096, 16_386),
    "small-32k": (3_277_568, 32_770),
    "medium-160k": (6_550_528, 160_002),
    "medium-450k": (6_550_528, 450_002),
    "large-1m": (6_550_528, 1_000_002),
}


def load(name: str) -> RunConfig:
    return load_yaml(ROOT / "configs" / f"{name}.yaml", RunConfig)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_config_plans_on_the_ranks_it_asks_for(path: Path) -> None:
    config = load_yaml(path, RunConfig)
    ranks = config.local_ranks or config.widest_sequence_parallel
    plans = plan_stages(config, ranks)
    assert plans[-1].end_step == config.total_steps
    for plan in plans:
        used = plan.data_parallel * plan.accumulation * plan.micro_batch_size
        assert used == plan.config.sequences
        assert plan.data_parallel * plan.config.sequence_parallel == ranks
    table = describe(config, ranks)[-len(plans) :]
    assert [row.split()[:2] for row in table] == [[str(p.number), f"{p.config.context_length:,}"] for p in plans]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_config_has_a_header_and_the_name_of_its_file(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert 2 <= header <= 8
    assert load_yaml(path, RunConfig).name == path.stem


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_published_weights_context_and_recipe(name: str) -> None:
    config = load(name)
    with torch.device("meta"):
        model = HyenaDNA(config.model)
    weights, maximum = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    assert config.model.maximum_context == maximum
    assert config.schedule[-1].context_length > 0.97 * maximum
    assert config.optimizer.learning_rate == 6e-4 and config.optimizer.minimum_learning_rate == 6e-5
    assert config.seed == 2222 and config.data.append_end_token
    for stage in config.schedule:
        assert stage.sequences == (256 if stage.context_length < 64 * 1024 else 128)


@pytest.mark.parametrize("ranks", [8, 16, 32, 64, 512])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_starts_on_any_cluster_with_the_same_batch(name: str, ranks: int) -> None:
    config = load(name)
    for stage, plan in zip(config.schedule, plan_stages(config, ranks), strict=True):
        assert plan.data_parallel * plan.accumulation * plan.micro_batch_size == stage.sequences
        assert plan.data_parallel * plan.config.sequence_parallel == ranks
        assert plan.config.sequence_parallel == stage.sequence_parallel or plan.data_parallel <= stage.sequences
        assert plan.config.context_length == stage.context_length


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_never_shortens_its_context(name: str) -> None:
    config = load(name)
    lengths = [stage.context_length for stage in config.schedule]
    assert all(before < after <= 2 * before for before, after in pairwise(lengths))
