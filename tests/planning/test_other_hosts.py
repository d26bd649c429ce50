"""The grid of a run on other hosts than it began on: nothing changes but what must, and what changes divides and fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig, WarmupConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.cost.devices import Cluster, device_called, published_device
from hyena_ds.cost.shape import shape_of_stage
from hyena_ds.planning.forecast import USABLE, predict
from hyena_ds.planning.other_hosts import layout, layout_on
from hyena_ds.runtime.hostfile import Host
from hyena_ds.runtime.roster import Layout
from tests.paths import ROOT

LARGE = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig)
H200 = published_device("h200")


def run(*stages: StageConfig, width: int = 24, warmup: WarmupConfig | None = None, **changes: Any) -> RunConfig:
    lengths = [stage.context_length for stage in stages] + ([warmup.to] if warmup else [])
    model = ModelConfig(width, 2, max(lengths))
    data = DataConfig((SourceConfig("shards"),))
    return RunConfig("run", model, data, stages, warmup=warmup, **changes)


def stage(length: int, sequences: int, sp: int = 1, micro: int | None = None) -> StageConfig:
    return StageConfig(length, 10, micro, global_batch=sequences, sequence_parallel=sp)


def hosts(count: int, slots: int = 1) -> list[Host]:
    return [Host(f"node{number}", slots) for number in range(count)]


def grids(found: Layout | None) -> list[tuple[int, int]]:
    assert found is not None
    return [(plan.data_parallel, plan.config.sequence_parallel) for plan in found.stages]


def written(config: RunConfig, found: Layout | None, directory: Path) -> RunConfig:
    """The config that a start with the overrides reads."""
    from hyena_ds.config.loading import dump_yaml, to_plain

    assert found is not None
    file = directory / "config.yaml"
    file.write_text(dump_yaml(to_plain(config)))
    return load_yaml(file, RunConfig, list(found.overrides))


def test_a_config_that_divides_stays_as_it_is() -> None:
    config = run(stage(252, 6, sp=1), stage(252, 12, sp=2))
    found = layout(config, hosts(6), hosts(4)[:2])
    assert found == Layout(plan_stages(config, 2))


def test_where_the_cut_must_change_the_fastest_that_fits_is_taken_and_the_other_stages_keep_theirs(
    tmp_path: Path,
) -> None:
    config = run(stage(252, 6), stage(252, 6, sp=3))
    found = layout_on(config, Cluster(2, 1, H200))
    assert found is not None and found.fits and found.overrides == ("stages.1.sequence_parallel=1",)
    assert grids(found) == [(2, 1), (2, 1)]
    assert plan_stages(written(config, found, tmp_path), 2) == found.stages


def test_where_memory_is_short_the_cut_becomes_wider_or_the_policy_leaner_and_what_the_run_needs_is_the_bound(
    tmp_path: Path,
) -> None:
    length = 3 << 18
    config = run(stage(length, 6, sp=3, micro=1), width=96, output=str(tmp_path), activation_policy="fastest")
    needed = max(
        predict(shape_of_stage(config, plan, on_cpu=False), Cluster(3, 1, H200)).memory.total
        for plan in plan_stages(config, 3)
    )
    # Nothing is known of the device, so it holds what was needed on the hosts that the run began on, and little more.
    found = layout(config, hosts(3), hosts(2))
    assert found is not None and found.fits
    assert found.overrides == ("stages.0.sequence_parallel=2", "stages.0.activation_policy=balanced")
    for plan in found.stages:
        assert predict(shape_of_stage(config, plan, on_cpu=False), Cluster(2, 1, H200)).memory.total < 1.06 * needed
    # It is known: a card that would hold all of a sequence.
    row = {"step": 0, "device": "NVIDIA H200"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.jsonl").write_text(json.dumps(row) + "\n")
    assert grids(layout(config, hosts(3), hosts(2))) == [(2, 1)]


def test_a_micro_batch_that_does_not_divide_shrinks_before_a_cut_changes(tmp_path: Path) -> None:
    config = run(stage(252, 12, micro=4))
    assert grids(layout_on(config, Cluster(2, 1, H200))) == [(2, 1)]
    found = layout_on(config, Cluster(1, 2, H200))
    assert found is not None and found.overrides == ("stages.0.micro_batch_size=3",) and grids(found) == [(2, 1)]
    assert plan_stages(written(config, found, tmp_path), 2) == found.stages


def test_the_ladder_is_cut_as_the_ranks_that_are_left_allow(tmp_path: Path) -> None:
    warmup = WarmupConfig(64, 256, double_every=5, global_batch=8, tokens_per_rank=64)
    config = run(stage(256, 8, sp=4), warmup=warmup)
    assert grids(Layout(plan_stages(config, 4))) == [(4, 1), (2, 2), (1, 4), (1, 4)]
    found = layout_on(config, Cluster(2, 1, H200))
    assert found is not None and found.fits
    assert [override.partition("=")[0] for override in found.overrides] == [
        "warmup.tokens_per_rank",
        "stages.0.sequence_parallel",
    ]
    again = written(config, found, tmp_path)
    assert plan_stages(again, 2) == found.stages
    assert [each.tokens_per_step for each in again.schedule] == [each.tokens_per_step for each in config.schedule]


def test_a_batch_that_divides_on_no_grid_has_none() -> None:
    assert layout_on(run(stage(256, 4), width=32), Cluster(3, 1, H200)) is None
    assert layout_on(run(stage(256, 6), stage(256, 4), width=32), Cluster(3, 1, H200)) is None
    warmup = WarmupConfig(64, 256, double_every=5, global_batch=4)
    assert layout_on(run(stage(256, 6), width=32, warmup=warmup), Cluster(3, 1, H200)) is None


def test_where_nothing_fits_the_smallest_is_taken_and_said_not_to() -> None:
    small = replace(H200, memory=2.2 * 2**30)
    found = layout_on(LARGE, Cluster(1, 2, small))
    assert found is not None and not found.fits
    plan = found.stages[-1]
    smallest = predict(shape_of_stage(LARGE, plan, on_cpu=False), Cluster(1, 2, small)).memory.total
    assert plan.activation_policy == "leanest" and smallest > USABLE * small.memory


def test_hosts_that_differ_count_with_all_their_ranks() -> None:
    config = run(stage(252, 6, sp=3))
    assert grids(layout(config, hosts(3), [Host("a", 2), Host("b", 1)])) == [(1, 3)]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GH200 480GB", None),
        ("CPU", None),
        ("", None),
    ],
)
def test_a_device_is_known_by_the_name_that_its_driver_has_for_it(name: str, device: str | None) -> None:
    found = device_called(name)
    assert (found and found.name) == device
