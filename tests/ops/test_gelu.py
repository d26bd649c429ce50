"""GELU by one sigmoid against the library's tanh form."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hyena_ds.ops.gelu import gelu, gelu_with_slope

X = torch.cat((torch.linspace(-30.0, 30.0, 20001), torch.tensor([0.0, -1e-30, 1e-30, -1e4, 1e4])))


def test_value_and_slope_equal_the_tanh_form_in_float64_to_float32_rounding() -> None:
    x = X.double().requires_grad_()
    wanted = F.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(wanted.sum(), x)
    for value in (gelu(X), gelu_with_slope(X)[0]):
        torch.testing.assert_close(value.double(), wanted.detach(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gelu_with_slope(X)[1].double(), slope, rtol=2e-6, atol=2e-6)


def test_the_input_is_left_alone() -> None:
    x = X.clone()
    gelu(x)
    gelu_with_slope(x)
    assert torch.equal(x, X)
