"""`hyena-ds bench step`, as a user runs it, at sizes of a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hyena_ds.bench.step as step_module
from hyena_ds.bench.processes import DidNotFit, Ranks, SideFailed, WrongValue
from hyena_ds.bench.values import check_gradients, check_loss
from hyena_ds.cli import main

pytestmark = pytest.mark.slow

SMALL = ["--width", "16", "--layers", "1", "--rounds", "1"]


def bench(path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["bench", "step", *SMALL, *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_row_holds_time_memory_and_the_least_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        tmp_path / "r.json",
        "--context-length",
        "256",
        "--sequence-parallel",
        "2",
        "--transformer",
        "plain",
        "checkpointed",
    )
    assert result["machine"]["cores"] >= 1 and result["machine"]["torch"]
    assert "bench step" not in result["date"]
    two, transformer, checkpointed = result["rows"]
    sides = ["hyena-ds, balanced, sp 2", "transformer", "transformer, checkpointed"]
    assert [row["side"] for row in result["rows"]] == sides
    assert checkpointed["first_loss"] == pytest.approx(transformer["first_loss"], rel=1e-6)
    for row in result["rows"]:
        assert row["status"] == "measured"
        assert row["wall_seconds"]["min"] <= row["wall_seconds"]["median"] <= row["wall_seconds"]["max"]
        assert row["tokens_per_second"] == pytest.approx(256 / row["wall_seconds"]["median"])
        assert 0 < row["live_memory_gib"] < row["peak_memory_gib"] < 4
    assert two["limit"]["seconds"].keys() == {"gemm", "fft", "exchange"}
    # A shard is 128 tokens x 16 channels x 4 bytes, of which a rank sends half; forward and backward each move two
    # shards of activations and one of the filter.
    least = 3 * 128 * 16 * 4 // 2
    sent = two["bytes_exchanged"]
    assert sent == {"forward": least, "backward": least, "minimum_forward": least, "minimum_backward": least}
    shown = capsys.readouterr()
    assert "tokens/s" in shown.out and "of the limit" in shown.out and "machine, 2 x 1 threads" in shown.out
    assert transformer["against"]["side"] == two["side"]


def test_c_functions_take_turns_with_the_portable_code_and_begin_with_its_loss(tmp_path: Path) -> None:
    rows = bench(tmp_path / "r.json", "--context-length", "128", "--kernels", "portable", "native")["rows"]
    assert [row["side"] for row in rows] == ["hyena-ds, balanced", "hyena-ds, balanced, native"]
    portable, native = rows
    assert native["status"] == "measured" and native["kernels"] == "native" and native["filter_seconds"] > 0
    assert native["first_loss"] == pytest.approx(portable["first_loss"], rel=1e-6)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows by kind of one run of the bare step, the engine and, where there is a clone, the published code."""
    clone = os.environ.get("HYENA_REFERENCE")
    reference = [] if clone is None else ["--reference", clone]
    path = tmp_path_factory.mktemp("bench") / "r.json"
    rows = bench(path, "--context-length", "128", "--accumulation", "2", "--engine", *reference)["rows"]
    return {row["kind"]: row for row in rows}


def test_one_process_exchanges_nothing(beside: dict[str, dict[str, Any]]) -> None:
    row = beside["hyena-ds"]
    assert row["bytes_exchanged"]["forward"] == row["bytes_exchanged"]["minimum_forward"] == 0
    assert row["limit"]["seconds"].keys() == {"gemm", "fft"}
    assert row["filter_seconds"] > 0 and row["accumulation"] == 2


def test_the_engine_runs_the_same_step(beside: dict[str, dict[str, Any]]) -> None:
    engine = beside["hyena-ds engine"]
    assert engine["status"] == "measured"
    assert engine["first_loss"] == pytest.approx(beside["hyena-ds"]["first_loss"], rel=1e-5)


def test_the_published_code_computes_the_same(beside: dict[str, dict[str, Any]]) -> None:
    if "published" not in beside:
        pytest.skip("set HYENA_REFERENCE to a clone of HazyResearch/hyena-dna to compare with the published code")
    published = beside["published"]
    assert published["status"] == "measured" and published["values_checked"]
    assert published["first_loss"] == pytest.approx(beside["hyena-ds"]["first_loss"], rel=1e-5)


def test_a_side_without_memory_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step_module, "available_memory_gib", lambda: 2.0)
    monkeypatch.setattr(step_module.Limits, "of", lambda self, case: None)
    assert main(["bench", "step", "--context-length", "1048576"]) == 1
    assert "skipped: needs about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "problem", "text"),
    [("killed", DidNotFit, "SIGKILL"), ("memory", DidNotFit, "MemoryError"), ("hangs", SideFailed, "planted")],
)
def test_a_rank_that_fails_ends_its_side(how: str, problem: type[Exception], text: str) -> None:
    failing = Ranks("tests.bench.failing_side:FailingSide", 1, False, 1, "default", how=how)
    with failing as ranks, pytest.raises(problem, match=text):
        ranks.ask("step", last=True)


def test_values_that_differ_are_not_timed() -> None:
    check_loss(1.0 + 1e-6, 1.0, "a side")
    check_loss(1.001, 1.0, "a side", ("float32", "bfloat16"))
    with pytest.raises(WrongValue, match=r"loss of a side: found 1\.001, wanted 1 within"):
        check_loss(1.001, 1.0, "a side")
    with pytest.raises(WrongValue, match="loss of a side: found nan"):
        check_loss(float("nan"), 1.0, "a side")
    right = {"a": np.array([1.0, 2.0]), "b": np.array([1.0])}
    check_gradients(right, right, "a side")
    with pytest.raises(WrongValue, match=r"gradient of b, a side: found a relative error of 1\.0e-02"):
        check_gradients({**right, "b": np.array([1.01])}, right, "a side")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--context-length", "255", "--sequence-parallel", "2"],
            "--context-length: found 255, wanted a multiple of 2",
        ),
        (
            ["--width", "15", "--sequence-parallel", "2"],
            "--width: found 15, wanted a multiple of --sequence-parallel 2",
        ),
        (["--maximum-context", "64"], "--maximum-context: found 64, wanted at least the context length"),
        (["--batch", "0"], "--batch: found 0, wanted at least 1"),
        (["--rounds", "0"], "--rounds: found 0, wanted at least 1"),
        (["--reference", "no-such-clone"], "found no standalone_hyenadna.py there, wanted a clone"),
        (["--json", "no-such-directory/r.json"], "found no directory no-such-directory"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", *arguments]) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1


def test_parts_are_refused_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_module.Limits, "of", lambda self, case: self.machine.update(accelerator="an accelerator"))
    assert main(["bench", "step", "--context-length", "64", "--parts"]) != 0
    assert "--parts: found an accelerator, which runs behind the clock, wanted a CPU; leave" in capsys.readouterr().err
