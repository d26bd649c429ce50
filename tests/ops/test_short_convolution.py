"""The 3-tap convolution against PyTorch's grouped one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.ops.short_convolution import HALO, short_convolution


def wanted(x_BlC: Tensor, weight_C13: Tensor, bias_C: Tensor) -> Tensor:
    l, C = x_BlC.shape[1:]
    return F.conv1d(x_BlC.transpose(1, 2), weight_C13, bias_C, padding=2, groups=C)[..., :l].transpose(1, 2)


def tensors(B: int, l: int, C: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(l)
    x, weight, bias = torch.randn(B, l, C).double(), torch.randn(C, 1, 3).double(), torch.randn(C).double()
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("l", [1, 2, 3, 10])
def test_with_a_halo_of_zeros_it_is_the_grouped_convolution_and_so_are_its_gradients(l: int) -> None:
    inputs = tensors(2, l, 6)
    x, weight, bias = inputs
    found = short_convolution(torch.zeros(2, HALO, 6, dtype=torch.float64), x, weight, bias)
    torch.testing.assert_close(found, wanted(*inputs))
    dy = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted(*inputs), inputs, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cut", [2, 3, 8])
def test_two_slices_joined_by_the_halo_are_the_whole(cut: int) -> None:
    x, weight, bias = tensors(2, 10, 4)
    left = short_convolution(torch.zeros(2, HALO, 4, dtype=torch.float64), x[:, :cut], weight, bias)
    right = short_convolution(x[:, cut - HALO : cut], x[:, cut:], weight, bias)
    torch.testing.assert_close(torch.cat((left, right), 1), wanted(x, weight, bias))
