"""The implicit filter against its formula in float64: anywhere in a context of any size, extended or not.

D width, l local length.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import WarmupConfig
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.filter import ImplicitFilter, evaluate_filter, filter_gradients
from tests.model.golden import relative_error
from tests.model.plain import _Block, plain_filter
from tests.pieces import small_pieces

TRAINED = ModelConfig(width=12, layers=1, maximum_context=257, filter_width=16)
LONGER = 1025
TOLERANCE = 2e-5
"""Share of the largest value in the slice, however small that is."""
EXTRAPOLATED = replace(TRAINED, maximum_context=LONGER, extended_from=257, extension="extrapolate")
RESCALED = replace(TRAINED, maximum_context=LONGER, extended_from=257, extension="rescale")
VAST = replace(TRAINED, maximum_context=1 << 32, filter_features=9)
EXTENDED_VASTLY = replace(VAST, maximum_context=1 << 33, extended_from=1 << 32, extension="extrapolate")


def lively(config: ModelConfig) -> HyenaDNA:
    """Weights of the size that a trained filter has; the same for every context of a shape."""
    model = build_model(config, 3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in filter_of(model).parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def filter_of(model: HyenaDNA) -> ImplicitFilter:
    return model.backbone.blocks[0].operator.implicit_filter


def evaluate(config: ModelConfig, first: int, length: int) -> Tensor:
    module = filter_of(lively(config))
    with torch.no_grad():
        return evaluate_filter(module.shape, module.weights(), first, length)


def formula(config: ModelConfig, first: int, length: int, leaves: dict[str, Tensor] | None = None) -> Tensor:
    """In float64."""
    parameters = leaves or {name: p.detach().double() for name, p in lively(config).named_parameters()}
    block = _Block({name.removeprefix("backbone."): p for name, p in parameters.items()}, 0)
    return plain_filter(block, config, length, first)


SLICES = [
    (TRAINED, 0, 257),
    (TRAINED, 100, 31),
    (EXTRAPOLATED, 0, LONGER),
    (EXTRAPOLATED, 255, 5),
    (EXTRAPOLATED, 700, 325),
    (RESCALED, 0, LONGER),
    (replace(EXTRAPOLATED, filter_shift=0.05), 250, 500),
    (VAST, 0, 300),
    (VAST, (1 << 21) - 150, 300),
    (VAST, (1 << 31) - 150, 300),
    (VAST, (1 << 31) + 12345, 1),
    (VAST, (1 << 32) - 300, 300),
    (EXTENDED_VASTLY, (1 << 32) - 150, 300),
    (EXTENDED_VASTLY, (1 << 33) - 300, 300),
]


@pytest.mark.parametrize(("config", "first", "length"), SLICES, ids=str)
def test_a_slice_is_the_formulas_wherever_it_lies(config: ModelConfig, first: int, length: int) -> None:
    with small_pieces(tokens=64):
        found = evaluate(config, first, length).double()
    wanted = formula(config, first, length)
    assert found.isfinite().all()
    assert relative_error(found, wanted) <= TOLERANCE
    if length > 1:
        rough = float(found.diff().abs().max() - wanted.diff().abs().max())
        assert rough <= TOLERANCE * float(wanted.abs().max()), "it jumps where the formula is smooth"


@pytest.mark.parametrize(
    ("config", "first"), [(TRAINED, 40), (EXTRAPOLATED, 200), (RESCALED, 200), (VAST, (1 << 31) - 60)], ids=str
)
def test_its_gradients_are_the_formulas(config: ModelConfig, first: int) -> None:
    model = lively(config)
    weight = torch.randn((config.width, 120), generator=torch.Generator().manual_seed(0))
    module = filter_of(model)
    with small_pieces(tokens=50), torch.no_grad():
        gradients = filter_gradients(module.shape, module.weights(), first, weight)
    leaves = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters() if "implicit_filter" in n}
    (formula(config, first, 120, leaves) * weight).sum().backward()
    assert len(leaves) == len(gradients)
    for name, leaf in leaves.items():
        found = getattr(gradients, name.partition("implicit_filter.")[2].replace(".", "_"))
        assert relative_error(found, leaf.grad) <= TOLERANCE, name


def test_extrapolating_leaves_every_old_position_as_it_was_to_the_bit() -> None:
    old = evaluate(TRAINED, 0, 257)
    assert torch.equal(evaluate(EXTRAPOLATED, 0, 257), old)
    beyond = evaluate(EXTRAPOLATED, 257, LONGER - 257)
    assert beyond.isfinite().all()
    # The slowest channel's window is at 1 % where time is 1.5.
    assert float(beyond[:, 257 // 2 :].abs().max()) < 0.02 * float(old.abs().max())


def test_rescaling_stretches_the_filter_over_the_new_maximum() -> None:
    """At n (new maximum - 1) / (old maximum - 1) lies what was at n; the angles' period is M, so almost."""
    old, new = evaluate(TRAINED, 0, 257), evaluate(RESCALED, 0, LONGER)
    assert relative_error(new[:, ::4], old) <= 2 * math.pi / 257
    assert relative_error(new[:, :257], old) > 0.1
    made_for_it = evaluate(replace(TRAINED, maximum_context=LONGER), 0, LONGER)
    assert torch.equal(new, made_for_it)


def test_positions_beyond_the_maximum_context_are_refused() -> None:
    evaluate(EXTRAPOLATED, LONGER - 3, 3)
    with pytest.raises(
        ValueError, match=r"positions up to 1026 were asked of a filter defined over 1025; a longer con"
    ):
        evaluate(EXTRAPOLATED, LONGER - 3, 4)


def test_every_rung_of_a_ladder_uses_the_beginning_of_the_maximum_contexts_filter() -> None:
    whole = formula(TRAINED, 0, TRAINED.maximum_context)
    for rung in WarmupConfig(from_=16, to=256, double_every=1).rungs:
        ours = evaluate(TRAINED, 0, rung.context_length)
        assert relative_error(ours, whole[:, : rung.context_length]) < TOLERANCE
