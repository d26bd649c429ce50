"""The other benchmarks: values are checked, rows hold rates, a plot is an image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena_ds.bench.convolution import backward, check_convolution, forward
from hyena_ds.bench.limits import Limits
from hyena_ds.bench.prep import write_fasta
from hyena_ds.bench.processes import WrongValue
from hyena_ds.cli import main
from hyena_ds.cost.work import Ceilings
from tests.paths import ROOT


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, dy = (torch.randn((2, 5, 96), generator=generator) for _ in range(2))
    return u, torch.randn((5, 96), generator=generator), dy


def test_a_wrong_convolution_is_not_timed() -> None:
    check_convolution(forward, backward, *inputs())

    def late(u: Tensor, k: Tensor) -> Tensor:
        return torch.roll(forward(u, k), 1, dims=-1)

    def slightly_off(dy: Tensor, u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        du, dk = backward(dy, u, k)
        return du, dk * 1.0001

    with pytest.raises(WrongValue, match="convolution: y is off by"):
        check_convolution(late, backward, *inputs())
    with pytest.raises(WrongValue, match="convolution: dk is off by"):
        check_convolution(forward, slightly_off, *inputs())


@pytest.mark.slow
def test_convolution_and_exchange_write_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Ceilings(gemm_float32=1e9, gemm_bfloat16=1e9, fft=1e9, copy=1e9, exchange=1e9)
    monkeypatch.setattr(Limits, "of", lambda self, case: limits)
    for name in ("convolution", "exchange"):
        path = tmp_path / f"{name}.json"
        arguments = ["--context-length", "256", "--width", "16", "--rounds", "1", "--json", str(path)]
        assert main(["bench", name, *arguments]) == 0
    ours, autograd = json.loads((tmp_path / "convolution.json").read_text())["rows"]
    assert ours["forward_gflops"] > 0 and autograd["backward_seconds"]["median"] > 0
    rows = json.loads((tmp_path / "exchange.json").read_text())["rows"]
    assert len(rows) == 4
    assert all(row["bytes_sent"] == row["bytes_minimum"] == 2 * 128 * 16 * 4 // 2 for row in rows)


@pytest.mark.slow
def test_checkpoint_writes_a_row_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    arguments = ["--width", "16", "--layers", "1", "--rounds", "1", "--directory", str(tmp_path), "--json", str(path)]
    assert main(["bench", "checkpoint", *arguments]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["parameters"] > 0 and row["ranks"] == 2 and row["wall_seconds"]["median"] > 0
    assert row["stall_share"] == row["stall_seconds"]["median"] / row["wall_seconds"]["median"] > 0
    assert row["copied_seconds"]["median"] > row["copied_stall_seconds"]["median"] > 0
    assert [left.name for left in tmp_path.iterdir()] == ["checkpoint.json"]


def test_a_model_for_the_checkpoint_needs_width_and_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "checkpoint", "--width", "16", "32", "--layers", "1"]) == 2
    assert "--layers: found 1 numbers, wanted 2, one for each --width" in capsys.readouterr().err


def test_an_exchange_needs_two_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "exchange", "--sequence-parallel", "1"]) == 2
    assert "--sequence-parallel: found 1, wanted 2 or more ranks" in capsys.readouterr().err


@pytest.mark.slow
def test_prep_and_loader_read_what_was_written(tmp_path: Path) -> None:
    assert main(["bench", "prep", "--megabases", "0.1", "--rounds", "1", "--json", str(tmp_path / "prep.json")]) == 0
    assert json.loads((tmp_path / "prep.json").read_text())["rows"][0]["megabases_per_second"] > 0

    write_fasta(tmp_path / "random.fa", 20_000)
    (tmp_path / "prep.yaml").write_text(
        f"fasta: {tmp_path}/random.fa\nassembly: r\noutput: {tmp_path}/shards\n"
        "splits:\n  by_fraction: {train: 0.9, valid: 0.1}\n"
    )
    subprocess.run([sys.executable, "-m", "data_prep", "build", tmp_path / "prep.yaml"], cwd=ROOT, check=True)
    (tmp_path / "run.yaml").write_text(
        f"name: r\nmodel: {{width: 16, layers: 1, maximum_context: 128}}\ndata: {{sources: [{{shards: {tmp_path}/shards}}]}}\n"
        "stages:\n  - {context_length: 128, global_batch: 4, micro_batch_size: 2, steps: 10, sequence_parallel: 2}\n"
    )
    arguments = ["--config", str(tmp_path / "run.yaml"), "--steps", "3", "--rounds", "1"]
    assert main(["bench", "loader", *arguments, "--json", str(tmp_path / "loader.json")]) == 0
    (row,) = json.loads((tmp_path / "loader.json").read_text())["rows"]
    assert (row["steps"], row["samples"], row["tokens"]) == (3, 12, 12 * 64)


def step_row(side: str, length: int, seconds: float) -> dict[str, object]:
    shape = {"width": 128, "layers": 2, "batch": 1, "accumulation": 1, "threads": 1, "processes": 1}
    spread = {"median": seconds, "min": seconds, "max": seconds}
    row = {"side": side, "kind": "hyena-ds", "status": "measured", "context_length": length, **shape}
    return {**row, "wall_seconds": spread, "peak_memory_gib": seconds}


def test_a_plot_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an image needs matplotlib; pip install 'hyena-ds[plots]'")
    rows = [step_row(side, length, length / 1e4) for side in ("ours", "theirs") for length in (1024, 4096)]
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8, "torch": "2"}
    (tmp_path / "r.json").write_text(json.dumps({"machine": machine, "rows": [*rows, {"status": "skipped"}]}))
    assert main(["bench", "plot", str(tmp_path / "r.json"), "--output", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8, "torch": "2"}
    (tmp_path / "r.json").write_text(json.dumps({"machine": machine, "rows": [step_row("ours", 1024, 0.1)]}))
    (tmp_path / "other.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name, text in (
        ("r.json", "an image needs matplotlib; pip install 'hyena-ds[plots]'"),
        ("other.json", "not a result of `hyena-ds bench step --json`"),
        ("none.json", "No such file or directory"),
    ):
        assert main(["bench", "plot", str(tmp_path / name), "--output", str(tmp_path / "p.png")]) == 2
        assert text in capsys.readouterr().err
