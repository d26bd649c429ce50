"""Model flops utilisation and the share of the measured limit, against counts made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import Links, Rates
from hyena_ds.cost.efficiency import Limits, efficiency, measured_rates, published_peak, work_of
from hyena_ds.cost.shape import StepShape
from hyena_ds.genome.tokenizer import VOCABULARY

B, M, L, D, N = 2, 3, 1024, 32, 2
CONFIG = ModelConfig(width=D, layers=N, maximum_context=L)
SHAPE = StepShape(CONFIG, L, B, M, sequence_parallel=2, precision="bfloat16", policy="leanest")


def test_flops_are_those_of_products_filter_head_and_transforms_of_one_rank_without_recomputation() -> None:
    work = work_of(SHAPE, on_cpu=False)
    tokens = B * M * L // 2
    inner, E, F = CONFIG.mlp_width, CONFIG.filter_features, CONFIG.filter_width
    assert work.products == 3 * N * tokens * (2 * D * 3 * D + 2 * D * D + 2 * D * inner + 2 * inner * D)
    forward = 2 * (E * F + F * F + F * F + F * D)
    filters = N * (L // 2) * (forward + 2 * forward - 2 * E * F)
    assert work.products_float32 == filters + 6 * D * VOCABULARY * tokens
    assert work.points >= 2 * L
    assert work.transforms == N * (D // 2) * (4 * B * M + 2) * 2.5 * work.points * math.log2(work.points)
    assert work.flops == work.products + work.products_float32 + work.transforms
    assert work == work_of(StepShape(CONFIG, L, B, M, sequence_parallel=2, policy="fastest"), on_cpu=False)


def test_shares_follow_from_the_peak_and_from_the_measured_rates() -> None:
    work = work_of(SHAPE, on_cpu=False)
    rates = Rates(1e9, 4e9, math.inf, 1e9, Links(1, 1, 0, 0), transforms=((work.points, 5e8),))
    least = work.products / 4e9 + work.products_float32 / 1e9 + work.transforms / 5e8
    found = efficiency(SHAPE, 2 * least, Limits(1e12, rates), on_cpu=False)
    assert found == {"mfu": pytest.approx(work.flops / (2 * least) / 1e12), "limit_share": pytest.approx(0.5)}
    assert efficiency(SHAPE, 1.0, Limits(None, rates), on_cpu=False)["mfu"] == pytest.approx(work.flops / 4e9)
    assert efficiency(SHAPE, 1.0, Limits(1e12), on_cpu=False)["limit_share"] is None
    assert efficiency(SHAPE, 1.0, Limits(), on_cpu=False) == {"mfu": None, "limit_share": None}


def test_a_device_is_found_by_its_name_and_a_part_of_one_is_not() -> None:
    assert published_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert published_peak("NVIDIA A100-SXM4-40GB", "float32") == 19.5e12
    assert published_peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None
    assert published_peak("Tesla T4", "bfloat16") is None


def test_rates_are_those_of_so_many_ranks_on_this_kind_of_device_or_none(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    assert measured_rates(file, 2, on_cpu=True) is None
    ceiling = {"gemm_float32": 1e9, "gemm_bfloat16": 2e9, "copy": 3e9, "transforms": [[2048, 4e8]]}
    found = {"machine": {"cpu": "x"}, "ceilings": {"2": ceiling}}
    file.write_text(json.dumps(found))
    rates = measured_rates(file, 2, on_cpu=True)
    assert rates is not None and (rates.gemm_float32, rates.gemm_bfloat16) == (1e9, 2e9)
    assert rates.transform_seconds(2048, 4e8) == pytest.approx(1.0)
    assert measured_rates(file, 1, on_cpu=True) is measured_rates(file, 2, on_cpu=False) is None
    for damaged in (None, [], {"machine": 1}, {**found, "ceilings": {"2": {**ceiling, "gemm_float32": 0}}}):
        file.write_text(json.dumps(damaged))
        assert measured_rates(file, 2, on_cpu=True) is None
