"""The recorded tensors of the published code, by several ranks, through the engine's forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hyena_ds.config.policy import POLICIES, PolicyName
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.model.golden import CASES, SHIFTS, TOLERANCE, expected, gradient_name, relative_error, weights_path

LAYERS = {"d32_l2": 2, "d48_l3": 3}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sp", [2, 4])
def test_logits_loss_and_every_gradient_equal_the_published_code(
    ranks: Callable[[int], Pool], sp: int, case: str, shift: float, policy: PolicyName
) -> None:
    wanted = expected(case, shift)
    token_ids = wanted["token_ids"].long()
    everyone = ranks(sp).run(cases.golden, weights=weights_path(case), shift=shift, token_ids=token_ids, policy=policy)
    logits = torch.cat([found["logits"] for found in everyone], dim=1)
    assert relative_error(logits, wanted["logits"]) <= TOLERANCE
    loss = sum(found["loss_sum"] for found in everyone) / token_ids[:, 1:].numel()
    assert relative_error(torch.tensor(loss), wanted["loss"].squeeze()) <= TOLERANCE
    for found in everyone:
        gradients = {gradient_name(name, LAYERS[case]): g for name, g in found["gradients"].items()}
        assert set(gradients) == {name for name in wanted if name.startswith("grad/")}
        errors = {name: relative_error(gradient, wanted[name]) for name, gradient in gradients.items()}
        assert max(errors.values()) <= TOLERANCE, errors
