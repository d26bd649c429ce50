"""A loaded model with a longer maximum context: the filter that a run's config would give it, or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hyena_ds
from hyena_ds.errors import UserError
from hyena_ds.weights.extension import extended
from hyena_ds.weights.published import write_weights
from hyena_ds.weights.reading import read_weights
from tests.model.golden import relative_error
from tests.weights import layouts


def filter_of(model: Any, length: int) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.blocks[0].operator.implicit_filter(0, length)


def test_an_extrapolated_model_is_the_same_on_what_it_knew_and_a_rescaled_one_is_stretched(tmp_path: Path) -> None:
    folder = layouts.lightning_folder(tmp_path, "d32_l2")
    model = hyena_ds.load_model(folder, shift=0.05)
    farther = hyena_ds.load_model(folder, shift=0.05, maximum_context=259, extension="extrapolate")
    stretched = hyena_ds.load_model(folder, shift=0.05, maximum_context=259, extension="rescale")
    assert torch.equal(filter_of(farther, 130), filter_of(model, 130)) and filter_of(farther, 259).shape[1] == 259
    # Every second position of the stretched filter has the time of one that there was: 2n / 258 = n / 129.
    every_second, wanted = filter_of(stretched, 259)[:, ::2], filter_of(model, 130)
    assert relative_error(every_second, wanted) <= 0.1 < relative_error(filter_of(farther, 259)[:, ::2], wanted)
    assert stretched.config.time_context == 259
    ids = torch.randint(7, 12, (2, 130), generator=torch.Generator().manual_seed(1))
    assert torch.equal(farther(ids), model(ids)) and not torch.allclose(stretched(ids), model(ids))


def test_an_extended_model_that_is_written_and_read_is_the_same(tmp_path: Path) -> None:
    weights = read_weights(layouts.lightning_folder(tmp_path, "d32_l2") / "weights.ckpt", shift=0.05)
    for extension in ("extrapolate", "rescale"):
        longer = extended(weights, 500, extension)
        write_weights(tmp_path / "longer.safetensors", longer.config, longer.parameters)
        assert read_weights(tmp_path / "longer.safetensors").config == longer.config
    again = extended(extended(weights, 500, "extrapolate"), 900, "extrapolate").config
    assert (again.extended_from, again.maximum_context) == (130, 900)
    assert extended(extended(weights, 500, "rescale"), 900, "extrapolate").config.extended_from == 500


@pytest.mark.parametrize(
    ("maximum_context", "extension", "said"),
    [
        (500, None, "found one of maximum context and extension, wanted both, or neither"),
        (None, "rescale", "found one of maximum context and extension, wanted both, or neither"),
        (500, "stretch", "extension: found 'stretch', wanted rescale or extrapolate"),
        (130, "rescale", "maximum context: found 130, wanted more than the model's 130"),
        (2**41, "rescale", "maximum context: found 2199023255552, wanted at most"),
    ],
)
def test_an_extension_that_is_none_is_named(maximum_context: Any, extension: Any, said: str, tmp_path: Path) -> None:
    folder = layouts.lightning_folder(tmp_path, "d32_l2")
    with pytest.raises(UserError) as caught:
        hyena_ds.load_model(folder, 0.0, maximum_context, extension)
    assert said in str(caught.value)


def test_an_extrapolated_model_cannot_be_rescaled(tmp_path: Path) -> None:
    weights = read_weights(layouts.lightning_folder(tmp_path, "d32_l2") / "weights.ckpt", shift=0.05)
    with pytest.raises(UserError, match="a model that was extrapolated from 130 tokens, which cannot be rescaled"):
        extended(extended(weights, 500, "extrapolate"), 900, "rescale")
