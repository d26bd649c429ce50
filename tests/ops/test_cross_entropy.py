"""Final norm, head and loss in tiles against the library in float64; the gradient once, and none without grad."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy
from tests.pieces import small_pieces

B, L, D, V = 3, 23, 8, 16


def inputs() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, L, D), (D,), (D,), (V, D))
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets = torch.randint(0, V, (B, L), generator=generator)
    targets[:, ::4] = IGNORED
    return leaves, targets


def library(leaves: list[Tensor], targets: Tensor) -> Tensor:
    r, weight, bias, embedding = leaves
    logits = F.linear(F.layer_norm(r, (D,), weight, bias, 1e-5), embedding)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("tokens", [5, 23, 1000])
def test_loss_and_every_gradient_equal_the_library(tokens: int) -> None:
    leaves, targets = inputs()
    wide = [leaf.clone().requires_grad_() for leaf in leaves]
    wanted = library(wide, targets)
    wanted_gradients = torch.autograd.grad(3.0 * wanted, wide)
    narrow = [leaf.float().requires_grad_() for leaf in leaves]
    with small_pieces(tokens):
        found = summed_cross_entropy(*narrow, targets)  # type: ignore[call-arg]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0.0)
    for gradient, right in zip(torch.autograd.grad(3.0 * found, narrow), wanted_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-5, atol=1e-5)


def test_a_slice_without_a_scored_target_gives_zero_and_zero_gradients() -> None:
    leaves, targets = inputs()
    narrow = [leaf.float().requires_grad_() for leaf in leaves]
    loss = summed_cross_entropy(*narrow, torch.full_like(targets, IGNORED))  # type: ignore[call-arg]
    assert float(loss.detach()) == 0.0
    assert not any(bool(gradient.any()) for gradient in torch.autograd.grad(loss, narrow))


def test_without_grad_no_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyena_ds.ops import cross_entropy

    def fail(*_: object) -> None:
        raise AssertionError("a gradient was made")

    leaves, targets = inputs()
    monkeypatch.setattr(cross_entropy, "layer_norm_backward", fail)
    with torch.no_grad():
        summed_cross_entropy(*(leaf.float().requires_grad_() for leaf in leaves), targets)  # type: ignore[call-arg]
    with pytest.raises(AssertionError, match="a gradient was made"):
        summed_cross_entropy(*(leaf.float().requires_grad_() for leaf in leaves), targets)  # type: ignore[call-arg]
