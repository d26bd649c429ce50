"""Every layout loads through one function to what the published code computed, and what cannot is named."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyena_ds
from hyena_ds.checkpoints.weights import find_weights, read_aloud
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import BOS, RESERVED
from hyena_ds.tasks.next_token import NextTokenTask
from hyena_ds.weights.published import write_weights
from hyena_ds.weights.reading import read_weights
from tests.distributed.work import Grid, run_config
from tests.model.golden import CASES, SHIFTS, TOLERANCE, expected, relative_error
from tests.weights import layouts
from tests.weights.layouts import EMBEDDING, LAYOUTS

State = dict[str, Tensor]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_computes_what_the_published_code_did(name: str, case: str, shift: float, tmp_path: Path) -> None:
    make, kind = LAYOUTS[name]
    path = make(tmp_path, case)
    model = hyena_ds.load_model(path, shift=shift)
    wanted = expected(case, shift)
    ids = wanted["token_ids"][:, :-1]
    known = torch.ones(16, dtype=torch.bool)
    if "multimolecule" in name:  # it has one row for two of our tokens
        ids, hidden_rows = ids, (ids != BOS).cumprod(1).bool()
        known[BOS] = False
    else:
        hidden_rows = torch.ones_like(ids, dtype=torch.bool)
    assert hidden_rows.any(1).all()
    hidden, logits = model.backbone(ids), model(ids)
    assert relative_error(hidden[hidden_rows], wanted["hidden"][hidden_rows]) <= TOLERANCE
    assert relative_error(logits[hidden_rows][:, known], wanted["logits"][hidden_rows][:, known]) <= TOLERANCE
    assert read_weights(find_weights(path), shift).layout == kind


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameters_of_every_layout_are_the_same_bits_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    wanted = read_weights(layouts.weights_path("d48_l3"), shift=0.05)
    found = read_weights(find_weights(LAYOUTS[name][0](tmp_path, "d48_l3")), shift=0.05)
    assert found.config == wanted.config
    write_weights(tmp_path / "again.safetensors", found.config, found.parameters)
    again = read_weights(tmp_path / "again.safetensors")
    assert again.config == found.config and again.shift_from == "the file's header" and not again.notes
    for name_of, parameter in wanted.parameters.items():
        rows = torch.ones(parameter.shape[0], dtype=torch.bool)
        if name.startswith("multimolecule") and name_of == "backbone.embedding.weight":
            rows[BOS] = False
            assert torch.equal(found.parameters[name_of][BOS], parameter[RESERVED])
            assert any("[BOS] and [RESERVED] share" in note for note in found.notes)
        assert torch.equal(found.parameters[name_of][rows], parameter[rows])
        assert torch.equal(again.parameters[name_of], found.parameters[name_of])


def test_a_head_of_lightning_s_metrics_and_optimizer_states_are_left_out(tmp_path: Path) -> None:
    found = read_weights(layouts.lightning_folder(tmp_path, "d32_l2") / "weights.ckpt", shift=0.0)
    assert found.left_out == ("train_torchmetrics.total",)
    assert not any("optimizer" in key or "exp_avg" in key for key in found.keys)
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    found = read_weights(find_weights(layouts.multimolecule_backbone(backbone, "d32_l2")), shift=0.0)
    assert found.left_out == ("pooler.dense.bias", "pooler.dense.weight")


def test_of_several_files_in_a_folder_the_safest_is_taken(tmp_path: Path) -> None:
    layouts.lightning_folder(tmp_path, "d32_l2")
    assert find_weights(tmp_path).name == "weights.ckpt"
    layouts.hf_bin(tmp_path, "d32_l2")
    assert find_weights(tmp_path).name == "pytorch_model.bin"
    layouts.hf_safetensors(tmp_path, "d32_l2")
    assert find_weights(tmp_path).name == "model.safetensors"


def hf(directory: Path, change: Callable[[State], object]) -> Path:
    state = layouts.hf_state("d32_l2")
    change(state)
    torch.save(OrderedDict(state), directory / "pytorch_model.bin")
    layouts.hf_config(directory, "d32_l2")
    return directory


FILTER = "hyena.backbone.layers.1.mixer.filter_fn."


def added(key: str, value: float) -> Callable[[State], object]:
    """Adds to one number of a tensor."""

    def change(state: State) -> None:
        state[key] = state[key].clone()
        state[key].view(-1)[-1] += value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("hyena.backbone.ln_f.bias"), "the key 'hyena.backbone.ln_f.bias' is missing; wanted"),
        (
            lambda s: [s.pop(key) for key in [*s] if "layers.0.mixer.in_proj" in key],
            "the key 'hyena.backbone.layers.0.mixer.in_proj.weight' is missing (and 1 other)",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.1.mixer.attention.weight": torch.zeros(1)}),
            "found the unknown key 'hyena.backbone.layers.1.mixer.attention.weight'",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.0.norm1.weight": torch.zeros(31)}),
            "'hyena.backbone.layers.0.norm1.weight' has shape (31,), wanted (32,)",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.0.norm1.weight": torch.zeros(32, dtype=torch.int64)}),
            "'hyena.backbone.layers.0.norm1.weight' has numbers of type I64, wanted F32 or F64",
        ),
        (
            lambda s: s.update(
                {f"hyena.{EMBEDDING}": s[f"hyena.{EMBEDDING}"][:12], "lm_head.weight": s["lm_head.weight"][:12]}
            ),
            f"'hyena.{EMBEDDING}' has shape (12, 32), wanted (16, 32)",
        ),
        (
            added("lm_head.weight", 0.25),
            f"'lm_head.weight' differs from 'hyena.{EMBEDDING}' by up to 0.25, wanted a head that is the embedding",
        ),
        (
            added(f"{FILTER}implicit_filter.5.freq", 1.0),
            f"'{FILTER}implicit_filter.5.freq' differs from '{FILTER}implicit_filter.1.freq' by up to 1, wanted one frequency",
        ),
        (added(f"{FILTER}pos_emb.z", 0.5), f"'{FILTER}pos_emb.z' differs by 0.5 from what follows"),
        (added(f"{FILTER}pos_emb.z", float("nan")), f"'{FILTER}pos_emb.z' differs by nan from what follows"),
        (added(f"{FILTER}pos_emb.t", 0.5), f"'{FILTER}pos_emb.t' differs by 0.5 from what follows"),
        (added(f"{FILTER}modulation.deltas", -7.0), f"'{FILTER}modulation.deltas' differs by 0.456 from what follows"),
        (
            lambda s: s.update({f"{FILTER}pos_emb.t": torch.zeros(1, 99, 1)}),
            f"'{FILTER}pos_emb.t' has shape (1, 99, 1), wanted (1, 130, 1)",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.1.mlp.layer.fc1.bias": torch.zeros(128)}),
            "found 'hyena.backbone.layers.1.mlp.fc1.bias' and 'hyena.backbone.layers.1.mlp.layer.fc1.bias', which are one",
        ),
        (
            lambda s: s.pop("hyena.backbone.layers.0.mlp.fc1.weight"),
            "'hyena.backbone.layers.0.mlp.fc1.weight' is missing",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.0.mlp.fc1.weight": torch.tensor(1.0)}),
            "'hyena.backbone.layers.0.mlp.fc1.weight' has shape (), wanted a matrix",
        ),
        (
            lambda s: s.update({"hyena.backbone.layers.0.mlp.fc1.weight": torch.zeros(70_000, 1)}),
            "its shape is no HyenaDNA's (inner_width: found 70000",
        ),
        (
            lambda s: s.pop(f"hyena.{EMBEDDING}"),
            "found keys such as 'hyena.backbone.layers.0.mixer.filter_fn.bias', wanted",
        ),
    ],
    ids=range(18),
)
def test_what_is_no_hyenadna_of_ours_is_named(change: Callable[[State], object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        hyena_ds.load_model(hf(tmp_path, change), shift=0.0)
    assert str(caught.value).startswith(str(tmp_path)) and said in str(caught.value)


def test_multimolecule_s_missing_key_is_called_as_it_is_there(tmp_path: Path) -> None:
    layouts.multimolecule(tmp_path, "d32_l2")
    state = load_file(tmp_path / "model.safetensors")
    del state["model.final_layer_norm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the key 'model\.final_layer_norm\.bias' is missing"):
        hyena_ds.load_model(tmp_path, shift=0.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"hyena_order": 3}, "hyena_order: found 3, wanted 2, which is all that model.safetensors can be loaded as"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps: found 1e-12, wanted 1e-05"),
        ({"layer": {"bidirectional": True}}, "bidirectional: found True, wanted False"),
        ({"layer": {"shift": "much"}}, "shift: found 'much', wanted a number"),
        ({"layer": {"shift": 1e300}}, "its shape is no HyenaDNA's (filter_shift: found 1e+300"),
        (
            {"max_position_embeddings": 2**70},
            "max_position_embeddings: found 1180591620717411303424, wanted a whole number",
        ),
        ({"max_position_embeddings": "130"}, "max_position_embeddings: found '130', wanted a whole number from 1"),
        ({"max_position_embeddings": 1}, "its shape is no HyenaDNA's (maximum_context: found 1, wanted at least 2"),
        (
            {"max_position_embeddings": None},
            "nothing says over how many tokens the filter is defined; put its config.json",
        ),
        ([], "found no JSON object of at most 1,048,576 bytes"),
        ("{" * 100_000, "found no JSON object"),
        ("[" * 100_000, "found no JSON object"),
        (" " * 1_100_000, "found no JSON object"),
    ],
    ids=range(13),
)
def test_a_config_that_cannot_be_is_named(content: Any, said: str, tmp_path: Path) -> None:
    layouts.multimolecule(tmp_path, "d32_l2")
    file = tmp_path / "config.json"
    if isinstance(content, dict):
        content = {**json.loads(file.read_text()), **content}
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        hyena_ds.load_model(tmp_path)
    assert said in str(caught.value)


def test_a_config_that_is_a_directory_is_named(tmp_path: Path) -> None:
    layouts.multimolecule(tmp_path, "d32_l2")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="not a file; wanted the model's config, or none"):
        hyena_ds.load_model(tmp_path)


def test_where_config_and_weights_disagree_the_weights_are_right_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts.lightning_folder(tmp_path, "d32_l2")
    config = layouts.published_config("d48_l3")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = hyena_ds.load_model(tmp_path, shift=0.0)
    assert (model.config.width, model.config.layers, model.config.maximum_context) == (32, 2, 130)
    said = capsys.readouterr().err
    for name, theirs, ours in (
        ("width", 48, 32),
        ("layers", 3, 2),
        ("mlp_width", 192, 128),
        ("maximum_context", 514, 130),
    ):
        assert f"says {name} {theirs}, the weights have {ours}: took theirs" in said


def test_the_config_s_shift_is_taken_where_it_has_one(tmp_path: Path) -> None:
    layouts.lightning_folder(tmp_path, "d32_l2")
    config = layouts.published_config("d32_l2")
    config["layer"]["shift"] = 0.03
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_aloud(tmp_path)
    assert (found.config.filter_shift, found.shift_from, found.notes) == (0.03, "config.json", ())
    assert read_aloud(tmp_path, shift=0.0).shift_from == "given"
    with pytest.raises(UserError, match="shift: found nan"):
        read_aloud(tmp_path, shift=float("nan"))


@pytest.mark.parametrize("name", ["lightning, wrapped", "hf safetensors", "multimolecule"])
def test_a_run_is_initialized_from_published_weights(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name][0](tmp_path, "d32_l2")
    shape = {"width": 32, "maximum_context": 130, "filter_width": 64, "filter_shift": 0.05}
    task = NextTokenTask(run_config(Grid(1, 1), **shape, initialize_from=str(folder)))
    objective = task.objective()
    task.initialize(objective)
    wanted = hyena_ds.load_model(folder, shift=0.05).state_dict()
    assert all(torch.equal(found, wanted[key]) for key, found in objective.state_dict().items())
    with pytest.raises(UserError, match=r"weights have width 32, the config wants 16; make model agree"):
        other = NextTokenTask(run_config(Grid(1, 1), initialize_from=str(folder)))
        other.initialize(other.objective())
