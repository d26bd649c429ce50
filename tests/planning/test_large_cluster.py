"""What the scaling study says of 512 devices beside their steps, and of what kind each of its numbers is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest

from hyena_ds.config.checkpoint import CheckpointConfig, TierConfig
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.config.watching import CorruptionConfig, StragglersConfig
from hyena_ds.cost.beside_steps import START
from hyena_ds.cost.devices import Cluster, published_device
from hyena_ds.cost.shape import StepShape
from hyena_ds.planning.forecast import Prediction, predict
from hyena_ds.planning.large_cluster import large_cluster, lasting
from hyena_ds.planning.scaling import Study, study, study_page
from hyena_ds.planning.sources import Kind
from tests.paths import ROOT

CONFIG = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig)
H200 = published_device("h200")
PAGE = (ROOT / "bench" / "scaling.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"(?m)^#+ ", PAGE)


def step(config: RunConfig = CONFIG) -> Prediction:
    shape = StepShape(config.model, 1 << 19, 2, 1, 64, 8, "fastest", "bfloat16", config.zero_stage)
    return predict(shape, Cluster(64, 8, H200))


def tables(page: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Titles and rows of each."""
    for block in re.findall(r"(?m)(?:^\|.*\n)+", page):
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines() if line != "")
        yield head, rows


def sourced(page: str) -> list[list[str]]:
    return [row for head, rows in tables(page) if "kind" in head for row in rows]


def test_every_row_says_of_what_kind_its_number_is_and_where_it_is_from() -> None:
    found = list(tables(PAGE))
    of_kinds = [(head, rows) for head, rows in found if "kind" in head]
    assert len(of_kinds) == 4 and len(found) == 10
    for head, rows in of_kinds:
        assert head[-2:] == ["kind", "from"] and rows
        for row in rows:
            assert len(row) == len(head) and row[-2] in get_args(Kind) and row[-1], row
    assert {row[-2] for row in sourced(PAGE)} == set(get_args(Kind))


def test_every_table_of_results_says_in_a_line_of_what_kinds_its_numbers_are() -> None:
    results = [text for text in SECTIONS if (heads := [head for head, _ in tables(text)]) and "kind" not in heads[0]]
    assert len(results) == 6
    assert all("\nKinds: " in text.split("\n|")[0] for text in results), results


@pytest.mark.parametrize("device", ["l40s", "a100"])
def test_shares_that_another_device_reaches_are_assumed(device: str) -> None:
    found: Study = replace(study(CONFIG, H200), device=published_device(device))
    rows = sourced(study_page(found))
    kinds = {row[0]: row[-2] for row in rows}
    assert kinds["products reach of these"] == kinds["a real transform"] == kinds["starting a kernel"] == "assumed"
    assert kinds["between machines"] == ("assumed" if device == "l40s" else "data sheet")


def test_the_row_of_512_devices_is_what_is_left_below() -> None:
    (strong,) = (rows for head, rows in tables(PAGE) if "speed-up" in head)
    (row,) = (row for row in strong if row[0] == "512")
    (left,) = (cells for cells in sourced(PAGE) if "with saves and failures" in cells[0])
    assert left[1].startswith(f"**{row[-1]}**, ") and 0.9 < float(row[-1][:-1]) / 100 < 1
    assert ["calls to the file system, a start", f"{START.rank}", f"{START.node}", f"{START.calls(64):,}"] in [
        cells[:4] for cells in sourced(PAGE)
    ]


def cells(config: RunConfig, what: str) -> list[str]:
    found = large_cluster(config, step(config), Cluster(64, 8, H200))
    (row,) = (row for table in found.values() for row in sourced(f"{table}\n") if row[0] == what)
    return row


def test_what_is_seen_and_lost_follows_the_configs_keys() -> None:
    saves = CheckpointConfig(every_steps=40, tiers=(TierConfig("s3://bucket/runs", every_steps=120),))
    config = replace(CONFIG, checkpoint=saves, stragglers=StragglersConfig(30), corruption=CorruptionConfig(70))
    assert cells(config, "a rank is slow")[1].startswith("60 steps, ")
    flips = cells(config, "a bit of a parameter flips")
    assert flips[1].startswith("41 steps, ") and flips[2].startswith("41 steps, "), "there is a comparison after a save"
    assert cells(config, "a host dies, its link is cut")[1:3][0] == "30 s"
    assert cells(config, "the run's directory is lost")[2].startswith("160 steps, ")
    near = (TierConfig("/scratch", every_steps=10, local=True), *saves.tiers)
    config = replace(config, checkpoint=CheckpointConfig(every_steps=40, tiers=near))
    assert cells(config, "a host dies, its link is cut")[2].startswith("10 steps, ")
    assert cells(CONFIG, "the run's directory is lost")[2] == "all steps: nothing is copied"
    blind = replace(
        CONFIG,
        zero_stage=3,
        stragglers=StragglersConfig(None),
        corruption=CorruptionConfig(None),
        watchdog=WatchdogConfig(enabled=False),
    )
    flips = cells(blind, "a bit of a parameter flips in one of a rank's two copies")
    for row in (cells(blind, "a rank is slow"), cells(blind, "a rank is stuck"), flips):
        assert row[1] == "nobody looks"
    assert cells(blind, "watching")[1] == "0.00%"


def test_less_is_left_with_rarer_saves_more_devices_and_no_watchdog() -> None:
    def left(every: int, nodes: int, **changed: Any) -> float:
        config = replace(CONFIG, checkpoint=CheckpointConfig(every_steps=every), **changed)
        return lasting(config, step(), Cluster(nodes, 8, H200)).goodput()

    often = left(2000, 64)
    assert often > left(200_000, 64) > left(10_000_000, 64) >= 0
    assert often > left(2000, 1024) and often > left(2000, 64, watchdog=WatchdogConfig(enabled=False))
    assert often > left(10, 64), "a save holds the steps"
    assert left(10**12, 64) == 0.0


def test_where_no_grid_fits_that_is_said() -> None:
    found = large_cluster(CONFIG, None, Cluster(64, 8, H200))
    assert set(found.values()) == {"No grid of 512 devices fits."}
