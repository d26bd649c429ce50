"""The summed loss against its definition."""

from __future__ import annotations

import torch

from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy


def test_the_loss_is_the_sum_over_scored_positions() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 16)
    targets = torch.randint(7, 12, (2, 5))
    targets[0, 1] = targets[1, 4] = IGNORED
    wanted = 0.0
    for b in range(2):
        for t in range(5):
            if targets[b, t] != IGNORED:
                shares = logits[b, t].double().exp()
                wanted -= float((shares[targets[b, t]] / shares.sum()).log())
    found = summed_cross_entropy(logits, targets)
    assert found.dtype == torch.float32 and abs(float(found) - wanted) < 1e-4


def test_a_slice_without_a_scored_position_gives_zero_with_a_graph() -> None:
    logits = torch.randn(1, 3, 16, requires_grad=True)
    loss = summed_cross_entropy(logits, torch.full((1, 3), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))
