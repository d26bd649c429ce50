"""What a micro step gives a GPU to do, counted on the meta device: bounds, so that no change adds a pass unseen."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyena_ds.bench.bytes import back_ends_of, count_micro_step
from hyena_ds.bench.count import FFT_PASSES, Count
from hyena_ds.cli import main
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.memory import moments
from hyena_ds.cost.shape import KernelsName, Precision, StepShape
from hyena_ds.cost.traffic import MemoryTraffic, traffic
from hyena_ds.cost.work import exchange_bytes
from hyena_ds.ops.triton.traffic import Traffic, launch
from hyena_ds.parallel.devices import send
from tests.paths import ROOT

LARGE = load_yaml(str(ROOT / "configs" / "large-1m.yaml"), RunConfig).model
HALF: dict[str, Any] = {"precision": "bfloat16", "exchange_precision": "bfloat16"}
MILLION = StepShape(replace(LARGE, maximum_context=1 << 20), 1 << 20, policy="lean", **HALF)
META = torch.device("meta")


def test_a_million_tokens_stay_within_their_bounds() -> None:
    row = count_micro_step(MILLION)
    assert row["total_bytes"] < 3.5e12
    assert row["kernels"] <= 4_000
    assert row["live_peak_gib"] <= 28
    assert row["host_copies"] == 0, row["host_copies_by_line"]
    assert_planned(MILLION, row)
    assert sum(row["bytes_by_file"].values()) == sum(row["bytes_by_operation"].values()) == row["total_bytes"]
    assert 0.6e12 < row["floor_bytes"] < 0.9e12


BAND = {"portable": (1.0, 1.45), "triton": (0.98, 1.12)}
"""Planned live tensors of a million tokens as a share of those that are counted: most beyond them for `leanest`, whose pieces the
plan takes to be held for longer."""


def assert_planned(shape: StepShape, row: dict[str, Any]) -> None:
    """Memory and kernels that plan says are enough, and not much more."""
    planned = max(sum(part.size * part.number for part in found) for found in moments(shape, on_cpu=False).values())
    least, most = BAND[shape.kernels]
    assert least < planned / 2**30 / row["live_peak_gib"] < most
    if shape.kernels == "triton":
        assert_as_many_kernels(shape, row)


def assert_as_many_kernels(shape: StepShape, row: dict[str, Any]) -> None:
    """As plan takes Triton's code to start, exchanges among them."""
    planned = traffic(shape, on_cpu=False)
    assert planned.messages == pytest.approx(row["collectives_started"], rel=0.05)
    assert planned.kernels == pytest.approx(row["kernels"] + row["collectives_started"], rel=0.12)


@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_planned_memory_is_about_what_a_step_holds(policy: PolicyName) -> None:
    shape = replace(MILLION, policy=policy)
    row = count_micro_step(shape)
    assert policy != "leanest" or row["live_peak_gib"] <= 12
    assert_planned(shape, row)


@pytest.mark.parametrize(
    ("policy", "precision", "ranks"),
    [
        ("fastest", "bfloat16", 1),
        ("balanced", "bfloat16", 1),
        ("fastest", "float32", 1),
        ("balanced", "float32", 1),
        ("lean", "float32", 1),
        ("leanest", "bfloat16", 8),
        ("fastest", "bfloat16", 8),
    ],
)
def test_planned_memory_of_tritons_kernels_is_about_what_a_step_holds(
    policy: PolicyName, precision: Precision, ranks: int
) -> None:
    how = {"precision": precision, "exchange_precision": precision, "sequence_parallel": ranks}
    shape = replace(MILLION, policy=policy, kernels="triton", **how)  # type: ignore[arg-type]
    row = count_micro_step(shape, *back_ends_of("triton"))
    least, most = BAND["triton"]
    planned = max(sum(part.size * part.number for part in found) for found in moments(shape, on_cpu=False).values())
    assert least < planned / 2**30 / row["live_peak_gib"] < most
    assert_as_many_kernels(shape, row)


@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_many_short_sequences_start_as_many_kernels_as_planned(policy: PolicyName) -> None:
    model = replace(MILLION.config, maximum_context=1024)
    shape = replace(MILLION, config=model, context_length=1024, batch=16, policy=policy, kernels="triton")
    assert_as_many_kernels(shape, count_micro_step(shape, *back_ends_of("triton")))


def test_tritons_kernels_stay_within_theirs() -> None:
    row = count_micro_step(MILLION, *back_ends_of("triton"))
    assert_planned(replace(MILLION, kernels="triton"), row)
    assert row["kernels_of"] == "triton" and row["side"] == "lean, bfloat16, triton"
    assert row["total_bytes"] < 2.05e12
    assert row["kernels"] < 1_800
    assert row["live_peak_gib"] <= 28
    assert row["host_copies"] == 0, row["host_copies_by_line"]
    assert 0.9e11 < row["bytes_by_file"]["ops/triton/gates.py"] < 1e11


def test_the_leanest_million_tokens_are_in_the_memory_that_is_left_for_them() -> None:
    shape = replace(MILLION, policy="leanest", kernels="triton")
    row = count_micro_step(shape, *back_ends_of("triton"))
    assert row["live_peak_gib"] <= 12
    assert row["total_bytes"] < 2.65e12
    assert row["kernels"] <= 4_500
    assert_planned(shape, row)
    of_layers = sum(size for file, size in row["bytes_by_file"].items() if file not in (*FILTERS, *TRANSFORMS))
    assert traffic(shape, on_cpu=False).layer_bytes == pytest.approx(of_layers, rel=0.05)


@pytest.mark.parametrize(
    ("policy", "terabytes", "gib"), [("lean", 1.3, 28.0), ("fastest", 1.15, 64.0), ("leanest", 1.65, 12.0)]
)
def test_the_fused_convolution_stays_within_its(policy: PolicyName, terabytes: float, gib: float) -> None:
    row = count_micro_step(replace(MILLION, policy=policy), *back_ends_of("fused"))
    assert row["live_peak_gib"] <= gib
    assert row["side"] == f"{policy}, bfloat16, fused"
    assert row["total_bytes"] < 1e12 * terabytes
    assert "ops/triton/spectra.py" not in row["bytes_by_file"] and "ops/fft_convolution.py" not in row["bytes_by_file"]
    assert row["host_copies"] == 0, row["host_copies_by_line"]


@pytest.mark.parametrize(("kernels", "L"), [("portable", 4096), ("triton", 4096), ("fused", 1 << 14)])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_exchange_is_awaited_and_nothing_holds_the_host_up(
    policy: PolicyName, ranks: int, kernels: str, L: int
) -> None:
    model = ModelConfig(width=32, layers=2, maximum_context=L, residual_dropout=0.1)
    shape = StepShape(model, L, 2, sequence_parallel=ranks, policy=policy, precision="bfloat16")
    row = count_micro_step(shape, *back_ends_of(kernels))
    assert row["kernels_of"] == kernels and ("ops/triton/long_convolution.py" in row["bytes_by_file"]) == (
        kernels == "fused"
    )
    assert row["collectives_awaited"] == row["collectives_started"]
    assert (row["collectives_started"] > 0) == (row["bytes_sent"] > 0) == (ranks > 1)
    assert row["host_copies"] == 0, row["host_copies_by_line"]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_sent_is_what_the_plan_says(policy: PolicyName) -> None:
    model = ModelConfig(width=32, layers=2, maximum_context=4096)
    shape = StepShape(model, 4096, 2, sequence_parallel=8, policy=policy)
    half = replace(shape, precision="bfloat16", exchange_precision="bfloat16")
    wide, narrow = count_micro_step(shape)["bytes_sent"], count_micro_step(half)["bytes_sent"]
    assert wide == sum(exchange_bytes(shape)) and narrow == sum(exchange_bytes(half))
    filters = 2 * narrow - wide  # they stay in float32
    assert narrow < 0.65 * wide and 0 < filters < 0.3 * wide


PACKING = ("parallel/layout.py", "parallel/collectives.py", "ops/triton/packing.py")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kernels", ["portable", "triton"])
@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_what_plan_takes_exchanges_to_copy_is_what_they_copy(
    policy: PolicyName, kernels: KernelsName, batch: int
) -> None:
    model = ModelConfig(width=256, layers=1, maximum_context=4096)
    how = {"precision": "bfloat16", "exchange_precision": "bfloat16", "kernels": kernels}
    shape = StepShape(model, 4096, batch, sequence_parallel=8, policy=policy, **how)  # type: ignore[arg-type]
    found = count_micro_step(shape, *back_ends_of(kernels))["bytes_by_file"]
    copied = sum(found.get(file, 0) for file in PACKING)
    assert copied == pytest.approx(traffic(shape, on_cpu=False).packed_bytes, rel=0.05)


@pytest.mark.parametrize(("kernels", "policy", "gigabytes"), [("triton", "lean", 4.4), ("fused", "fastest", 4.4)])
def test_packing_of_a_million_tokens_on_eight_ranks_stays_within_its_bounds(
    kernels: str, policy: PolicyName, gigabytes: float
) -> None:
    shape = replace(MILLION, policy=policy, sequence_parallel=8, exchange_precision="bfloat16")
    row = count_micro_step(shape, *back_ends_of(kernels))
    assert sum(row["bytes_by_file"].get(file, 0) for file in PACKING) < 1e9 * gigabytes
    assert row["total_bytes"] < {"triton": 2.75e11, "fused": 1.47e11}[kernels]


FILTERS = ("model/filter.py", "model/filter_kernel.py", "model/filter_cache.py", "ops/triton/filter.py")
TRANSFORMS = ("ops/fft_convolution.py", "ops/triton/spectra.py")


@pytest.mark.parametrize("kernels", ["portable", "triton"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_plan_takes_a_layer_of_a_device_to_move_is_what_it_moves(
    policy: PolicyName, precision: Precision, kernels: KernelsName
) -> None:
    dropout = 0.1 if kernels == "triton" else 0.0  # whose masks go through no memory

    def moved(layers: int) -> tuple[float, float, MemoryTraffic]:
        model = ModelConfig(64, layers, 65536, 192, embedding_dropout=dropout, residual_dropout=dropout)
        shape = StepShape(model, 65536, policy=policy, precision=precision, kernels=kernels)
        found = count_micro_step(shape, *back_ends_of(kernels))["bytes_by_file"]
        # The cache counts with the layers in the portable code's units.
        of_filter = FILTERS if kernels == "triton" else FILTERS[:1]
        layer = sum(size for file, size in found.items() if file not in (*of_filter, *TRANSFORMS))
        planned = traffic(shape, on_cpu=False)
        return layer - planned.layer_bytes, sum(found.get(f, 0) for f in of_filter) - planned.filter_bytes, planned

    (one_layer, of_filter, planned), (two_layers, _, _) = moved(1), moved(2)
    assert abs(two_layers - one_layer) < 0.03 * planned.layer_bytes
    assert abs(of_filter) < 0.1 * planned.filter_bytes


def test_kernels_of_known_size_are_counted_with_what_they_hide() -> None:
    a_64, b_64 = torch.empty(64, device=META), torch.empty(64, device=META)
    with Count() as count:
        c_64 = a_64 + b_64
        c_64.add_(a_64)
        c_64[8:16].zero_()
        c_64.copy_(b_64.expand(1, 64)[0])
    floats = {operation: moved // 4 for (_, operation), moved in count.bytes.items()}
    assert floats == {"add": 3 * 64, "add_": 3 * 64, "zero_": 8, "copy_": 2 * 64}
    assert count.kernels.total() == 4 and count.peak == count.live == 256
    with Count() as count:
        spectrum = torch.fft.rfft(torch.empty(4, 1024, device=META))
        torch.fft.irfft(spectrum)
    real, half = 4 * 1024 * 4, spectrum.nbytes
    of = {operation: moved for (_, operation), moved in count.bytes.items()}
    assert of["_fft_r2c"] == 2 * FFT_PASSES * half
    assert of["_fft_c2r"] == 2 * FFT_PASSES * half + 2 * half + 2 * real
    assert count.kernels.total() == FFT_PASSES + FFT_PASSES + 2


def test_live_tensors_are_those_that_somebody_holds() -> None:
    with Count() as count:
        kept = torch.empty(1000, device=META)
        view = kept[:10]
        (torch.empty(3000, device=META) * 2.0).sum()
        del kept
        assert count.live == 4000, "a view holds its storage"
        del view
    assert count.live == 0 and count.peak == 4000 + 2 * 12000


@pytest.mark.parametrize(
    "stray",
    [
        lambda x: x + torch.tensor(2.0, device=META),
        lambda x: x.new_tensor([1.0]),
        lambda x: x + torch.ones(8).to(META),
        lambda x: x.copy_(torch.ones(8)),
        lambda x: torch.as_tensor([1, 2], device=META),
    ],
)
def test_data_from_the_host_is_found(stray: Any) -> None:
    with Count() as count:
        stray(torch.empty(8, device=META))
    assert count.host_copies.total() == 1
    assert not count.host_copies.keys() - {"torch"}


def test_a_batch_travels_in_single_bytes_and_arrives_as_it_was() -> None:
    ids = torch.tensor([[7, 8, -100]])
    with Count() as count:
        assert send(ids, META).dtype == torch.int64
        assert send(ids + 1000, META).dtype == torch.int64
        assert send(ids / 2, META).dtype == torch.float32
    assert count.host_copies.total() == 0
    (moved,) = (moved for (_, name), moved in count.bytes.items() if name == "_to_copy")
    assert moved == (3 + 3 + 3 + 24) + (24 + 24) + (12 + 12), (
        "there and, if need be, wide again; what is large goes as it is"
    )


def test_the_command_writes_a_row_for_each_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bytes.json"
    command = ["bench", "bytes", str(ROOT / "configs" / "tiny-1k.yaml"), "--json", str(path)]
    assert main([*command, "--precision", "float32", "--sequence-parallel", "2"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["policy"] for row in rows] == [*POLICIES]
    assert {row["context_length"] for row in rows} == {1024} and {row["sequence_parallel"] for row in rows} == {2}
    shown = capsys.readouterr().out
    assert "floor GB" in shown and "GB by file" in shown and "ops/fft_convolution.py" in shown and "_fft_c2c" in shown
    assert main([*command, "--sequence-parallel", "3"]) == 2
    assert "--sequence-parallel: found 3 for 1024 tokens and width 128" in capsys.readouterr().err


def test_a_kernel_of_ours_counts_as_it_declares() -> None:
    def kernel() -> None:
        raise AssertionError("it ran")

    h_nI = torch.empty(64, 32, device=META)
    with Count() as count:
        launch(SimpleNamespace(fn=kernel), (1,), h_nI, lambda: Traffic(600, 40))
    assert [*count.bytes.values()] == [640] and [*count.kernels.values()] == [1]
    ((_, name),) = count.bytes
    assert name == "kernel"


def test_kernels_that_cannot_be_imported_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hyena_ds.model.triton_kernels", None)
    assert main(["bench", "bytes", str(ROOT / "configs" / "tiny-1k.yaml"), "--kernels", "triton"]) == 2
    refused = capsys.readouterr().err
    assert (
        "--kernels: found no triton that can be imported (" in refused and "pip install 'hyena-ds[triton]'" in refused
    )
