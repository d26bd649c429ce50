"""`hyena-ds export`: what the folder holds, from which weights, and what is said when there is none or no room."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyena_ds.bench.published_side import load_standalone
from hyena_ds.checkpoints.manifest import read_checkpoint
from hyena_ds.checkpoints.weights import load_model
from hyena_ds.cli import main
from hyena_ds.config.model import ModelConfig
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.predict.export import export
from hyena_ds.weights.published import published_names, write_weights
from tests.checkpoints import cases
from tests.distributed.pool import Pool
from tests.distributed.work import TOLERANCE, lively_model, relative_error
from tests.training.runs import make_shards, train, write_config

CONFIG = ModelConfig(width=24, layers=2, maximum_context=900, inner_width=40, filter_width=20, filter_shift=0.05)
SHAPES = {
    "plain": CONFIG,
    "other-features": replace(CONFIG, filter_features=9, filter_shift=0.0),
    "rescaled": replace(CONFIG, extended_from=300, extension="rescale"),
    "extrapolated": replace(CONFIG, extended_from=300, extension="extrapolate"),
}
HUGGINGFACE = {
    "README.md",
    "config.json",
    "configuration_hyenadna.py",
    "generation_config.json",
    "model.safetensors",
    "modeling_hyenadna.py",
    "heads_hyenadna.py",
    "tokenizer.json",
    "tokenizer_config.json",
}


def weights_of(config: ModelConfig, place: Path) -> Path:
    write_weights(place, config, dict(lively_model(config).named_parameters()))
    return place


def same_as(folder: Path, model: HyenaDNA) -> None:
    """Assert that a Hugging Face folder holds the bits of the model's parameters, and nothing else."""
    found = load_file(folder / "model.safetensors")
    names = published_names(model.config.layers)
    assert {f"hyena.{names[name]}" for name, _ in model.named_parameters()} == found.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(found[f"hyena.{names[name]}"], parameter), name


def test_the_huggingface_folder_has_its_files_and_the_bits_of_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = weights_of(CONFIG, tmp_path / "w.safetensors"), tmp_path / "new" / "out"
    assert main(["export", str(weights), str(out)]) == 0
    assert {path.name for path in out.iterdir()} == HUGGINGFACE and os.listdir(out.parent) == ["out"]
    printed = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in printed[:-1]} == HUGGINGFACE
    assert printed[-1] == f"written: {out} (2 layers, width 24, contexts to 900)"
    same_as(out, load_model(weights))
    assert main(["export", str(weights), str(tmp_path / "out")]) == 0  # again, in the same bytes
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()
    }
    card = (out / "README.md").read_text()
    assert "Nothing is known of them: this model was exported from weights alone" in card
    assert "| longest input | 900 tokens |" in card


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("form", ["huggingface", "published"])
@pytest.mark.parametrize("name", SHAPES)
def test_ours_exported_and_read_again_is_the_same_bit_for_bit(
    name: str, form: str, header: bool, tmp_path: Path
) -> None:
    weights = weights_of(SHAPES[name], tmp_path / "weights.safetensors")
    export(weights, tmp_path / "out", form)
    if not header and form == "huggingface":  # as transformers' save_pretrained leaves it
        file = tmp_path / "out" / "model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt"})
    found, wanted = load_model(tmp_path / "out"), load_model(weights)
    assert found.config == wanted.config
    for (key, a), (_, b) in zip(found.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", SHAPES)
def test_the_published_folder_holds_what_the_published_code_would_compute_itself(name: str, tmp_path: Path) -> None:
    """By the formulas of its positional embedding and window, written again here in float64."""
    config = SHAPES[name]
    export(weights_of(config, tmp_path / "w.safetensors"), tmp_path / "out", "published")
    state = torch.load(tmp_path / "out" / "weights.ckpt", weights_only=True)["state_dict"]
    model = lively_model(config)
    for ours, theirs in published_names(config.layers).items():
        assert torch.equal(state[f"model.{theirs}"], dict(model.named_parameters())[ours]), ours
    assert torch.equal(state["model.lm_head.weight"], model.backbone.embedding.weight)
    L, T, bands = config.maximum_context, config.time_context, (config.filter_features - 1) // 2
    n = torch.arange(L, dtype=torch.float64)
    z = torch.exp(
        -1j * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * (2 * torch.pi * n / T).unsqueeze(1)
    )
    t = (n / (T - 1)).unsqueeze(1)
    deltas = torch.linspace(-3.0701134573253945, -15.350567286626973, config.width, dtype=torch.float64)
    for layer in range(config.layers):
        prefix = f"model.backbone.layers.{layer}.mixer.filter_fn."
        for number in (3, 5):
            assert torch.equal(
                state[f"{prefix}implicit_filter.{number}.freq"], state[f"{prefix}implicit_filter.1.freq"]
            )
        wanted = {"pos_emb.z": torch.cat((t, z.real, z.imag), 1)[None], "pos_emb.t": t[None]}
        for key, value in {**wanted, "modulation.deltas": deltas[None, None]}.items():
            assert state[prefix + key].shape == value.shape
            assert relative_error(state[prefix + key].double(), value) < 1e-7, key
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["d_model"], told["n_layer"], told["d_inner"], told["layer"]["l_max"]) == (24, 2, 40, 900)
    assert (told["layer"]["shift"], told.get("extension")) == (config.filter_shift, config.extension)


def clone() -> str:
    found = os.environ.get("HYENA_REFERENCE")
    if found is None:
        pytest.skip(
            "set HYENA_REFERENCE to a clone of HazyResearch/hyena-dna to open an export with the published code"
        )
    return found


@pytest.fixture(scope="module")
def published() -> Any:
    """HyenaDNAPreTrainedModel of the clone's huggingface.py, without the example that the file runs when it is imported."""
    place = Path(clone())
    load_standalone(str(place))
    tree = ast.parse((place / "huggingface.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))]
    names: dict[str, Any] = {"__name__": "huggingface"}
    exec(compile(tree, "huggingface.py", "exec"), names)
    return names["HyenaDNAPreTrainedModel"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_published_code_loads_the_export_and_agrees(name: str, published: Any, tmp_path: Path) -> None:
    config = SHAPES[name]
    export(weights_of(config, tmp_path / "w.safetensors"), tmp_path / "out", "published")
    theirs = published.from_pretrained(str(tmp_path), "out").eval()
    ours = lively_model(config).eval()
    for length in (1, 2, 31, 900):
        ids = torch.randint(7, 12, (2, length), generator=torch.Generator().manual_seed(length))
        assert relative_error(theirs(ids), ours.backbone(ids)) <= TOLERANCE, length


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_checkpoint_of_two_ranks_is_exported_by_one_process(
    zero_stage: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    ranks(2).run(cases.save, directory=tmp_path / "checkpoints", zero_stage=zero_stage, steps=[1, 2])
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    assert read_checkpoint(checkpoint).record.ranks == 2
    for number, named in enumerate((checkpoint, checkpoint / "weights.safetensors", tmp_path)):
        out = tmp_path / "out" / str(number)
        export(named, out, "huggingface")
        same_as(out, load_model(checkpoint))
        assert "2 steps, 200 tokens" in (out / "README.md").read_text()
    told = json.loads((out / "config.json").read_text())
    assert told["embed_dropout"] == 0.0, "the run's, not the default"


@pytest.mark.slow
def test_the_card_of_a_run_says_what_it_was_trained_on_how_and_how_well(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", make_shards(tmp_path), validation={"every_steps": 2, "windows": 4})
    assert train(config).returncode == 0
    run = next((tmp_path / "runs").iterdir())
    export(run, tmp_path / "out", "huggingface")
    card = (tmp_path / "out" / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['validation_loss']:.4f} | {summary['validation_bits_per_base']:.4f}" in card
    for order, loss in summary["markov_losses"].items():
        assert f"Markov chain of order {order}, counted on the training data | {loss:.4f}" in card
    assert "| 0 | train | chr1 |" in card and "| 0 | valid | chr1 |" in card
    assert f"{summary['step']} steps, " in card and "hyena-ds train config.yaml" in card
    assert "    maximum_context: " in card
    # Moved away from its run, a checkpoint still knows its config.
    away = tmp_path / "elsewhere"
    next((run / "checkpoints").glob("step-*")).rename(away)
    export(away, tmp_path / "again", "huggingface")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "chromosomes cannot be named" in card and "No validation" in card and "maximum_context: " in card


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["export", *arguments]) == 2
    return capsys.readouterr().err.strip()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = weights_of(CONFIG, tmp_path / "w.safetensors")
    (tmp_path / "out").mkdir()
    told = said(capsys, str(weights), str(tmp_path / "out"))
    assert told.endswith("out: exists already, wanted a new folder; name another, or remove it")
    assert os.listdir(tmp_path / "out") == []


def test_what_is_no_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert str(tmp_path / "nothing") in told and os.listdir(tmp_path) == []


def test_a_context_too_long_for_the_published_layout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = weights_of(replace(CONFIG, maximum_context=1 << 25), tmp_path / "w.safetensors")
    told = said(capsys, str(weights), str(tmp_path / "out"), "--format", "published")
    assert "--format published: found a maximum_context of 33,554,432 tokens, wanted at most 16,777,216" in told
    assert main(["export", str(weights), str(tmp_path / "out")]) == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which a file of more bytes finds no room."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("form", ["huggingface", "published"])
def test_without_room_nothing_is_left(form: str, tmp_path: Path) -> None:
    weights = weights_of(CONFIG, tmp_path / "w.safetensors")
    with files_of_at_most(10_000), pytest.raises(OSError):
        export(weights, tmp_path / "out", form)
    assert os.listdir(tmp_path) == [weights.name]


def test_the_command_needs_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    export(weights_of(CONFIG, tmp_path / "w.safetensors"), tmp_path / "out", "huggingface")
    assert (tmp_path / "out" / "modeling_hyenadna.py").read_text().startswith('"""HyenaDNA for the transformers')
    for auto, name in json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"].items():
        kind = "configuration" if auto == "AutoConfig" else "heads" if auto.endswith("Classification") else "modeling"
        module, _, named = name.partition(".")
        assert module == f"{kind}_hyenadna"
        assert f"class {named}(" in (tmp_path / "out" / f"{module}.py").read_text()
