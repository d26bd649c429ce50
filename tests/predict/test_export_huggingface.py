"""The real transformers library opens an export where hyena_ds cannot be imported, and gets what we compute."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.model import ModelConfig
from hyena_ds.genome import tokenizer
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.ops.sizes import good_fft_length
from hyena_ds.predict.export import export
from hyena_ds.weights.huggingface.folder import huggingface_files
from hyena_ds.weights.published import published_names, write_weights
from tests.distributed.work import TOLERANCE, lively_model, relative_error

pytest.importorskip("transformers", reason="found no transformers; pip install -e '.[huggingface]' installs it")

from hyena_ds.weights.huggingface.modeling_hyenadna import fft_length

pytestmark = pytest.mark.slow

TIMEOUT = 400
CONFIG = ModelConfig(width=24, layers=2, maximum_context=9000, inner_width=40, filter_width=20, filter_shift=0.05)
OTHERS = {
    "rescaled": replace(CONFIG, maximum_context=4000, extended_from=500, extension="rescale"),
    "extrapolated": replace(CONFIG, extended_from=500, extension="extrapolate", filter_shift=0.0),
    "features": replace(CONFIG, filter_features=9, layers=3),
}
TEXTS = ["ACGTN", "acgtRYK", "", "AC GT\nA", "TTé日", "A[MASK]C"]


@dataclass(frozen=True)
class Stranger:
    """What the program found."""

    model: HyenaDNA
    inputs: dict[str, Tensor]
    answers: dict[str, Tensor]
    said: dict[str, Any]


def bases(rows: int, length: int) -> Tensor:
    return torch.randint(7, 12, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    place = tmp_path_factory.mktemp("stranger")
    folders = {}
    for name, config in {"model": CONFIG, **OTHERS}.items():
        weights = place / f"{name}.safetensors"
        write_weights(weights, config, dict(lively_model(config).named_parameters()))
        folders[name] = place / "folders" / name
        export(weights, folders[name], "huggingface")
    ended = place / "ended"
    ended.mkdir()
    for name, content in huggingface_files(CONFIG, dict(lively_model(CONFIG).named_parameters()), True).items():
        (ended / name).write_bytes(b"".join(content))
    inputs = {
        "one": bases(3, 1),
        "two": bases(1, 2),
        "short": bases(4, 33),
        "middle": bases(2, 1000),
        "long": bases(1, 8192),
    }
    save_file(inputs, place / "inputs.safetensors")
    case = {
        "folder": str(folders.pop("model")),
        "others": {name: str(folder) for name, folder in folders.items()},
        "ended": str(ended),
        "inputs": str(place / "inputs.safetensors"),
        "texts": TEXTS,
    }
    (place / "case.json").write_text(json.dumps(case))
    # With a home of its own: transformers keeps the code that it is told to trust in a cache.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    program = Path(__file__).with_name("stranger.py")
    done = subprocess.run(
        [sys.executable, str(program), str(place / "case.json")],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((place / "said.json").read_text())
    model = load_model(place / "model.safetensors")
    return Stranger(model, inputs, load_file(place / "answers.safetensors"), said)


def test_the_package_is_not_there(stranger: Stranger) -> None:
    assert stranger.said["hyena_ds"] == "No module named 'hyena_ds' (refused)"


@pytest.mark.parametrize("name", ["one", "two", "short", "middle", "long"])
@torch.no_grad()
def test_logits_are_ours_at_every_length(name: str, stranger: Stranger) -> None:
    wanted = stranger.model(stranger.inputs[name])
    assert relative_error(stranger.answers[f"logits {name}"], wanted) <= TOLERANCE


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_a_filter_of_another_context_or_shape_is_ours(name: str, stranger: Stranger) -> None:
    wanted = lively_model(OTHERS[name]).eval()(stranger.inputs["middle"])
    assert relative_error(stranger.answers[f"other {name}"], wanted) <= TOLERANCE
    plain = stranger.answers["logits middle"]
    assert relative_error(wanted, plain) > 100 * TOLERANCE


@torch.no_grad()
def test_hidden_states_are_ours_from_the_embedding_to_the_norm(stranger: Stranger) -> None:
    backbone = stranger.model.backbone
    ids_BL = stranger.inputs["short"]
    assert relative_error(stranger.answers["hidden"], backbone(ids_BL)) <= TOLERANCE
    assert torch.equal(stranger.answers["first state"], backbone.embedding(ids_BL))
    assert stranger.said["states"] == CONFIG.layers + 1
    for name in ("last state is the hidden", "embedded", "a tuple"):
        assert stranger.said[name], name


def test_a_sequence_beyond_the_filter_is_refused(stranger: Stranger) -> None:
    assert stranger.said["too long"] == "found 9001 tokens, wanted at most the model's max_seq_len of 9000"


@pytest.mark.parametrize("place", ["right", "left", "within"])
def test_padding_changes_no_token(place: str, stranger: Stranger) -> None:
    assert stranger.said[f"padding {place}"] <= TOLERANCE * stranger.said["largest logit"]
    noise, padded = stranger.said[f"loss, padding {place}"]
    assert math.isfinite(padded) and noise == pytest.approx(padded, rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "maximum", "last"])
def test_pooling_sees_no_padding(pooling: str, stranger: Stranger) -> None:
    for how, difference in stranger.said[f"pooling {pooling}"].items():
        assert difference <= 1e-6, how


def test_an_unknown_pooling_is_refused(stranger: Stranger) -> None:
    assert stranger.said["unknown pooling"] == "pooling: found 'median', wanted one of mean, maximum, last, first"


def test_every_gradient_of_the_language_model_is_ours_recomputed_or_not(stranger: Stranger) -> None:
    ids_BL = stranger.inputs["short"]
    stranger.model.zero_grad()
    logits = stranger.model(ids_BL)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())
    loss.backward()
    names = published_names(CONFIG.layers)
    for kind in ("gradient", "recomputed"):
        assert stranger.answers[f"{kind} loss"].item() == pytest.approx(loss.item(), rel=1e-6)
        for ours, parameter in stranger.model.named_parameters():
            theirs = stranger.answers[f"{kind} hyena.{names[ours]}"]
            assert relative_error(theirs, parameter.grad) <= 5 * TOLERANCE, ours


def test_a_step_of_classification_lowers_the_loss_and_moves_every_parameter(stranger: Stranger) -> None:
    before, after = stranger.said["losses"]
    assert after < before
    gradients = stranger.said["first gradients"]
    assert len(gradients) == len(published_names(CONFIG.layers)) + 1
    assert all(finite and largest > 0 for finite, largest in gradients.values())
    assert stranger.said["unmoved"] == []


@pytest.mark.parametrize("kind", ["regression", "several labels"])
def test_the_loss_follows_from_the_labels(kind: str, stranger: Stranger) -> None:
    found, wanted = stranger.said[kind]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_generation_is_reproducible_draws_bases_alone_and_agrees_with_forward_passes(stranger: Stranger) -> None:
    first, again, other = stranger.said["drawn"]
    assert first == again != other and len(first) == 46
    assert set(first[6:]) <= {7, 8, 9, 10} and len(set(first[6:])) > 1
    assert stranger.said["greedy"][0] == stranger.said["greedy"][1]


def test_prompts_generate_together_what_they_do_alone(stranger: Stranger) -> None:
    assert stranger.said["together"] == stranger.said["alone"]
    assert stranger.said["right"].startswith("found padding after a prompt, wanted it before")


def test_the_tokenizer_gives_the_published_ids(stranger: Stranger) -> None:
    special = len("[MASK]")
    for text, ids in zip(TEXTS, stranger.said["ids"], strict=True):
        if "[MASK]" in text:
            assert ids == [tokenizer.A, tokenizer.MASK, tokenizer.C] and special
        else:
            assert ids == tokenizer.encode(text).tolist(), text
    assert stranger.said["ids"] == stranger.said["plain ids"]
    assert stranger.said["ids with an end"] == [tokenizer.A, tokenizer.C, tokenizer.G, tokenizer.SEP]
    assert stranger.said["text"] == "GATTACAN" and stranger.said["longest"] == 9000
    assert stranger.said["batch"] == {"input_ids": [[7, 8, 9], [7, 4, 4]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    assert stranger.said["special"] == {"cls": 0, "sep": 1, "bos": 2, "mask": 3, "pad": 4, "unk": 6}


def test_a_round_trip_through_transformers_keeps_every_bit(stranger: Stranger) -> None:
    for name in ("bits in memory", "keys on disk", "bits on disk"):
        assert stranger.said[name], name
    assert stranger.said["ids again"] == [7, 8, 9, 10, 11]


@torch.no_grad()
def test_half_precision_keeps_the_filter_in_float32(stranger: Stranger) -> None:
    for name, dtype in stranger.said["dtypes"].items():
        assert dtype == ("torch.float32" if ".filter_fn." in name else "torch.bfloat16"), name
    wanted = stranger.model(stranger.inputs["short"])
    for name in ("half", "autocast"):
        assert relative_error(stranger.answers[name], wanted) <= 0.05


def test_a_model_without_a_file_begins_as_ours_does(stranger: Stranger) -> None:
    begun = stranger.said["begun"]
    block = "hyena.backbone.layers.1."
    outputs = 0.02 / math.sqrt(2 * CONFIG.layers)
    deviations = {
        f"{block}mixer.in_proj.weight": 0.02,
        f"{block}mixer.out_proj.weight": outputs,
        f"{block}mlp.fc2.weight": outputs,
        f"{block}mixer.short_filter.weight": 1 / 3,
        f"{block}mixer.filter_fn.bias": 1.0,
        f"{block}mixer.filter_fn.implicit_filter.2.weight": 0.02,
        f"{block}mixer.in_proj.bias": 0.0,
        "hyena.backbone.embeddings.word_embeddings.weight": 0.02,
    }
    for name, deviation in deviations.items():
        assert begun[name][1] == pytest.approx(deviation, rel=0.35), name
    assert begun[f"{block}mixer.filter_fn.implicit_filter.1.freq"] == [10.0, 0.0]
    assert begun[f"{block}norm1.weight"] == [1.0, 0.0]


def test_the_length_of_the_transforms_is_the_best_one() -> None:
    for minimum in [*range(1, 2000), 2 * 1_000_002 - 1, 2**20 + 1]:
        assert fft_length(minimum) == good_fft_length(minimum)
