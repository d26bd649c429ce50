"""Ours against tensors recorded from the published model code, in one process."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import hyena_ds
from hyena_ds.model.filter import evaluate_filter
from tests.model.golden import CASES, SHIFTS, TOLERANCE, expected, gradient_name, relative_error, weights_path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_logits_loss_and_every_gradient_equal_the_published_code(case: str, shift: float) -> None:
    model = hyena_ds.load_model(weights_path(case), shift=shift)
    wanted = expected(case, shift)
    inputs, targets = wanted["token_ids"][:, :-1], wanted["token_ids"][:, 1:]
    hidden = model.backbone(inputs)
    logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    assert relative_error(hidden, wanted["hidden"]) <= TOLERANCE
    assert relative_error(logits, wanted["logits"]) <= TOLERANCE
    assert relative_error(loss, wanted["loss"].squeeze()) <= TOLERANCE
    gradients = {gradient_name(name, model.config.layers): p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {name for name in wanted if name.startswith("grad/")}
    errors = {name: relative_error(gradient, wanted[name]) for name, gradient in gradients.items()}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_the_filter_belongs_to_the_maximum_context_and_a_shorter_input_uses_its_prefix(case: str, shift: float) -> None:
    model = hyena_ds.load_model(weights_path(case), shift=shift)
    wanted = expected(case, shift)["filter0"][0]
    implicit_filter = model.backbone.blocks[0].operator.implicit_filter
    with torch.no_grad():
        evaluate = partial(evaluate_filter, implicit_filter.shape, implicit_filter.weights())
        assert relative_error(evaluate(0, wanted.shape[0]).t(), wanted) <= TOLERANCE
        assert torch.allclose(evaluate(7, 20), evaluate(0, 27)[:, 7:], rtol=1e-6, atol=1e-7)
