"""What a micro step gives a GPU to do, counted on the meta device: bounds, so that no change adds a pass unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyena_ds.bench.bytes import count_micro_step
from hyena_ds.bench.count import FFT_PASSES, Count
from hyena_ds.cli import main
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.shape import StepShape
from hyena_ds.parallel.devices import send
from tests.paths import ROOT

LARGE = load_yaml(str(ROOT / "configs" / "large-1m.yaml"), RunConfig).model
MILLION = StepShape(replace(LARGE, maximum_context=1 << 20), 1 << 20, policy="lean", precision="bfloat16")
META = torch.device("meta")


def test_a_million_tokens_stay_within_their_bounds() -> None:
    row = count_micro_step(MILLION)
    assert row["total_bytes"] < 6.5e12
    assert row["kernels"] < 16_700
    assert row["live_peak_gib"] < 31
    assert row["host_copies"] == 0, row["host_copies_by_line"]
    assert sum(row["bytes_by_file"].values()) == sum(row["bytes_by_operation"].values()) == row["total_bytes"]
    assert 0.6e12 < row["floor_bytes"] < 0.9e12


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_exchange_is_awaited_and_nothing_holds_the_host_up(policy: PolicyName, ranks: int) -> None:
    model = ModelConfig(width=32, layers=2, maximum_context=4096, residual_dropout=0.1)
    row = count_micro_step(StepShape(model, 4096, 2, sequence_parallel=ranks, policy=policy, precision="bfloat16"))
    assert row["collectives_awaited"] == row["collectives_started"]
    assert (row["collectives_started"] > 0) == (row["bytes_sent"] > 0) == (ranks > 1)
    assert row["host_copies"] == 0, row["host_copies_by_line"]


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
    assert "floor GB" in shown and "GB by file" in shown and "ops/fft_convolution.py" in shown and "_fft_r2c" in shown
    assert main([*command, "--kernels", "triton"]) == 2
    assert "--kernels: found triton, wanted portable" in capsys.readouterr().err
    assert main([*command, "--sequence-parallel", "3"]) == 2
    assert "--sequence-parallel: found 3 for 1024 tokens and width 128" in capsys.readouterr().err


def test_a_kernel_of_ours_counts_as_it_declares() -> None:
    with torch.library._scoped_library("hyena_ds", "DEF") as library:
        library.define("gated(Tensor x) -> Tensor")
        library.impl("gated", torch.empty_like, "Meta")
        with Count({"gated": lambda x: 10 * x.numel()}) as count:
            torch.ops.hyena_ds.gated(torch.empty(64, device=META))
    assert count.bytes.total() == 640 and count.kernels.total() == 1
