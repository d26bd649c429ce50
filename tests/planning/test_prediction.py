"""`hyena-ds plan predict`: the parts by hand, and what a pass really holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB
from hyena_ds.cost.memory import MOST_HELD_BYTES, predict_memory
from hyena_ds.cost.shape import StepShape
from hyena_ds.model.backbone import build_model
from hyena_ds.weights.published import write_weights
from tests.predict.verbs import command, run, save_model

LARGE = StepShape(ModelConfig(width=256, layers=8, maximum_context=1_000_002), 1_000_002)


def test_a_million_tokens_hold_four_activations_and_the_filter_of_one_layer() -> None:
    unit = 4 * 1_000_002 * 256
    memory = predict_memory(LARGE, on_cpu=True)
    assert memory.parts["layer at work"] == 4 * unit and memory.parts["kept"] == unit
    assert 5 * unit + 0.4 * GIB < memory.total < 6 * GIB


def test_filters_of_all_layers_count_where_they_are_held() -> None:
    short = StepShape(LARGE.config, 1024, batch=4)
    assert predict_memory(short, on_cpu=True).parts["kept"] == 8 * 4 * 1024 * 256 < MOST_HELD_BYTES


def test_results_count_where_they_are_the_highest_moment() -> None:
    memory = predict_memory(LARGE, on_cpu=True, results=GIB)
    assert memory.moment == "results" and memory.total > predict_memory(LARGE, on_cpu=True).total + 0.9 * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--batch", "1"], ["--batch", "4"], ["--ranks", "2", "--sequence-parallel", "2"]], ids=str
)
def test_a_real_pass_holds_about_what_is_predicted(tmp_path: Path, words: list[str]) -> None:
    config = ModelConfig(width=64, layers=2, maximum_context=1 << 18)
    write_weights(tmp_path / "w.safetensors", config, dict(build_model(config, 1).named_parameters()))
    (tmp_path / "in.csv").write_text("sequence\n" + f"{'ACGT' * (1 << 16)}\n" * 4)
    more = ["--json", tmp_path / "s.json", *words]
    done = command("embed", tmp_path / "w.safetensors", tmp_path / "in.csv", "--output", tmp_path / "o.parquet", *more)
    assert done.returncode == 0, done.stderr
    batch, P = (4, 1) if "4" in words else (1, 2) if "--ranks" in words else (1, 1)
    wanted = predict_memory(StepShape(config, 1 << 18, batch, sequence_parallel=P), on_cpu=True).total / GIB
    found = json.loads((tmp_path / "s.json").read_text())["peak_memory_gib"]
    assert 0.8 * found <= wanted <= 1.25 * found


def test_it_prints_a_table_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, _ = save_model(tmp_path)
    assert run("plan", "predict", weights, "--batch", 2, "--sequence-parallel", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a pass of 2 x 512 tokens, cut into 4 slices: width 16, 2 layers"
    assert lines[1].split()[:5] == ["GiB", "a", "process", "process", "weights"] and len(lines[2].split()) == 9
    assert run("plan", "predict", "--width", 256, "--layers", 8, "--context", 1_000_002) == 0
    assert "a pass of 1 x 1,000,002 tokens: width 256, 8 layers" in capsys.readouterr().out
    assert run("plan", "predict", "--width", 256, "--layers", 8, "--context", 1_000_002, "--gpu") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "256"], "plan predict: found no MODEL, wanted one, or --width, --layers and --context"),
        (["w", "--width", "256"], "--width, --layers: found a MODEL too, whose shape is known; leave them out"),
        (["no"], "no: no such model; name a run, a checkpoint, a weights file or a folder with one"),
        (["w", "--context", "513"], "--context: found 513, wanted 1 to the model's maximum_context 512"),
        (["w", "--sequence-parallel", "3"], "--sequence-parallel: found 3, wanted a divisor of the model's width 16"),
        (["w", "--sequence-parallel", "0"], "--sequence-parallel: found 0, wanted 1 to 1,024"),
        (["w", "--batch", "0"], "--batch: found 0, wanted 1 to 100,000,000"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    weights, _ = save_model(tmp_path)
    assert run("plan", "predict", *[weights if word == "w" else word for word in words]) == 2
    assert said in capsys.readouterr().err
