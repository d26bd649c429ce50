"""A shift that nothing says is the one that the weights were trained with, by the loss on real bases, and it is said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import hyena_ds
from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import A, T
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.weights import shift as module
from hyena_ds.weights.published import write_weights
from hyena_ds.weights.reading import read_weights
from hyena_ds.weights.shift import choose_shift, real_windows
from tests.weights.test_weights_file import taken_apart, written


@cache
def trained(shift: float) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A model whose filter matters, after 80 steps with this shift."""
    config = ModelConfig(width=16, layers=1, maximum_context=32, filter_shift=shift)
    model, ids = build_model(config, 1), real_windows(32)
    operator = model.backbone.blocks[0].operator
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(5)
        for layer in (operator.in_projection, operator.out_projection, operator.implicit_filter.output):
            layer.weight.mul_(20)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    return config, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_the_shift_of_training_is_chosen_by_loss_and_said(
    shift: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, parameters = trained(shift)
    file = tmp_path / "weights.safetensors"
    write_weights(file, config, parameters)
    header, data = taken_apart(file)
    del header["__metadata__"]["shift"]
    written(file, header, data)
    model = hyena_ds.load_model(file)
    said = capsys.readouterr().err
    assert model.config.filter_shift == shift
    assert (
        f"{file}: nothing says the filter's shift: took {shift:g}, chosen by the loss on hg38 chr2 (nats a base: "
        in said
    )
    ids = real_windows(32)
    for candidate in (0.0, 0.05):
        again = HyenaDNA(replace(config, filter_shift=candidate))
        again.load_state_dict(parameters)
        with torch.no_grad():
            loss = F.cross_entropy(again(ids)[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
        assert f"{float(loss):.4f} with {candidate:g}" in said
    other = hyena_ds.load_model(file, shift=0.02)
    assert other.config.filter_shift == 0.02 and not capsys.readouterr().err


def test_a_rank_that_is_not_the_first_keeps_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.safetensors"
    write_weights(file, *trained(0.0))
    save_file(load_file(file), file)
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "config.json").write_text('{"l_max": 32}')
    assert hyena_ds.load_model(file).config.filter_shift == 0.0
    assert not capsys.readouterr().err


def test_a_file_that_says_its_shift_is_believed(tmp_path: Path) -> None:
    config, parameters = trained(0.0)
    write_weights(tmp_path / "w.safetensors", replace(config, filter_shift=0.05), parameters)
    found = read_weights(tmp_path / "w.safetensors")
    assert (found.config.filter_shift, found.shift_from, found.notes) == (0.05, "the file's header", ())


def test_weights_that_give_no_numbers_get_the_shift_of_the_published_inference_code() -> None:
    config, parameters = trained(0.0)
    chosen = choose_shift(config, {**parameters, "backbone.final_norm.weight": torch.full((16,), float("nan"))})
    assert chosen.shift == 0.05


def test_the_real_sequence_is_whole_bases_of_the_shipped_genome(monkeypatch: pytest.MonkeyPatch) -> None:
    for length, count in ((32, 256), (8192, 1), (5000, 1)):
        windows = real_windows(length)
        assert windows.shape == (count, length) and int(windows.min()) >= A and int(windows.max()) <= T
    monkeypatch.setattr(module, "_START", 3_000_000)
    with pytest.raises(UserError, match=r"found 2,333,275 bases, wanted 3,008,192; install hyena-ds again"):
        real_windows.__wrapped__(32)
