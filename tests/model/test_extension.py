"""A trained model's maximum context changes only where config and weights say so, and a file says what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

import hyena_ds
from hyena_ds.checkpoints.weights import check_same_shape
from hyena_ds.config.model import Extension, ModelConfig
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.ops.large import plain
from hyena_ds.parallel.layout import Layout
from hyena_ds.weights.published import write_weights
from hyena_ds.weights.reading import read_weights
from tests.model.golden import relative_error
from tests.pieces import small_pieces

PLAIN = ModelConfig(width=12, layers=1, maximum_context=256, filter_width=8)


def extended(by: Extension, to: int = 1024, of: int = 256) -> ModelConfig:
    return replace(PLAIN, maximum_context=to, extended_from=of, extension=by)


@pytest.mark.slow
def test_an_extended_model_reads_two_million_bases_and_begins_as_it_always_did() -> None:
    """Causality: the first tokens' logits are the old model's, if the filter over them is."""
    config, longer = replace(PLAIN, width=4), extended("extrapolate", 1 << 21)
    old, new = build_model(config, 1), build_model(replace(longer, width=4), 1)
    ids = torch.randint(7, 11, (1, 1 << 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = new(ids)
        wanted = old(ids[:, :256])
    assert logits.isfinite().all()
    assert relative_error(logits[:, :256], wanted) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_a_training_pass_of_two_to_the_thirty_second_elements_has_shapes_that_fit(policy: PolicyName) -> None:
    """On tensors without storage: 2 sequences of 2^24 tokens of 128 channels. The kernels' own indexing is torch's."""
    B, L = 2, 1 << 24
    with plain(), FakeTensorMode(), small_pieces(1 << 22, 10**6):
        model = HyenaDNA(ModelConfig(width=128, layers=1, maximum_context=L, residual_dropout=0.1))
        ids = torch.empty((B, L), dtype=torch.int64)
        key = DropoutKey(1, 2, torch.empty(B, dtype=torch.int64))
        residual = model.backbone.residual(ids, ForwardPass(Layout.whole(L), key, policy=POLICIES[policy]))
        assert residual.numel() == 1 << 32
        residual.sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.backbone.blocks.parameters())


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("config", [PLAIN, extended("rescale"), extended("extrapolate")], ids=str)
def test_the_weights_file_gives_the_same_filter_back(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config, 1)
    path = tmp_path / "weights.safetensors"
    write_weights(path, config, dict(model.named_parameters()))
    loaded = hyena_ds.load_model(path)
    assert (loaded.config.maximum_context, loaded.config.time_context) == (config.maximum_context, config.time_context)
    assert (loaded.config.extension, loaded.config.extended_from) == (config.extension, config.extended_from)
    assert header_of(path)["l_max"] == str(config.maximum_context)
    assert ("extension" in header_of(path)) == (config.extension is not None)
    ids = torch.randint(7, 11, (1, config.maximum_context))
    with torch.no_grad():
        assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extension": "stretch"}, "extension: found 'stretch', wanted rescale or extrapolate"),
        ({"extended_from": "4096"}, "extended_from: found 4096, wanted 2 to below maximum_context 1024"),
        ({"extended_from": "some"}, "extended_from: found 'some', wanted a whole number"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, str], words: str, tmp_path: Path) -> None:
    config, path = extended("rescale"), tmp_path / "weights.safetensors"
    write_weights(path, config, dict(build_model(config, 1).named_parameters()))
    save_file(load_file(path), path, metadata={**header_of(path), **change})
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert f"{path}: the header does not give the model's shape (" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (PLAIN, PLAIN),
        (PLAIN, extended("rescale")),
        (PLAIN, extended("extrapolate")),
        # As they are: the same config again, or, for a rescaled filter, one that was made for that maximum.
        (extended("rescale"), extended("rescale")),
        (extended("extrapolate"), extended("extrapolate")),
        (extended("rescale"), replace(PLAIN, maximum_context=1024)),
        # Further: what was rescaled is like new, what was extrapolated keeps its rate.
        (extended("rescale"), extended("rescale", 4096, of=1024)),
        (extended("rescale"), extended("extrapolate", 4096, of=1024)),
        (extended("extrapolate"), extended("extrapolate", 4096)),
    ],
    ids=str,
)
def test_a_start_whose_filter_is_the_models_or_follows_from_it_is_taken(
    found: ModelConfig, wanted: ModelConfig
) -> None:
    check_same_shape(Path("weights"), found, wanted)


EITHER = "set model.extended_from to 256 and model.extension to rescale or extrapolate, or model.maximum_context to 256"
ONLY_ON = (
    "their time runs over 256 tokens and beyond, which no other filter can go on: set model.extended_from to 256 and "
    "model.extension to extrapolate"
)
SHORTER = "shorter stages use a prefix of its filter"


@pytest.mark.parametrize(
    ("found", "wanted", "problem", "cure"),
    [
        (PLAIN, replace(PLAIN, maximum_context=1024), "256, the config wants 1024; ", EITHER),
        (PLAIN, extended("rescale", of=512), "256, the config wants 1024 (extended from 512 by rescale); ", EITHER),
        (PLAIN, replace(PLAIN, maximum_context=128), "256, the config wants 128; ", SHORTER),
        (
            replace(PLAIN, maximum_context=1024),
            extended("extrapolate"),
            "1024, the config wants 1024 (extended from 256 by extrapolate); ",
            "nothing is left to extend: leave model.extension and model.extended_from out",
        ),
        (
            replace(PLAIN, maximum_context=1024),
            extended("rescale"),
            "1024, the config wants 1024 (extended from 256 by rescale); ",
            "nothing is left to extend",
        ),
        (
            extended("extrapolate"),
            replace(PLAIN, maximum_context=1024),
            "1024 (extended from 256 by extrapolate), the config wants 1024; ",
            ONLY_ON,
        ),
        (extended("extrapolate"), extended("rescale", 4096, of=1024), "wants 4096 (extended from 1024", ONLY_ON),
        (extended("extrapolate"), extended("rescale"), "wants 1024 (extended from 256 by rescale); ", ONLY_ON),
        (extended("extrapolate"), extended("extrapolate", 4096, of=1024), "wants 4096 (extended from 1024", ONLY_ON),
        (extended("extrapolate"), extended("extrapolate", 512), "1024 (extended from 256", SHORTER),
        (extended("extrapolate"), PLAIN, "1024 (extended from 256", SHORTER),
    ],
    ids=str,
)
def test_another_maximum_context_is_refused_with_both_numbers_and_the_cure(
    found: ModelConfig, wanted: ModelConfig, problem: str, cure: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_same_shape(Path("some/weights"), found, wanted)
    text = str(caught.value)
    assert text.startswith("some/weights: the weights have maximum_context ")
    assert problem in text and cure in text
