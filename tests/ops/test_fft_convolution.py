"""The long convolution against the sum that defines it, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_ds.ops import fft_convolution
from hyena_ds.ops.fft_convolution import causal_convolution, good_fft_length


def direct(u_BdL: Tensor, k_dL: Tensor) -> Tensor:
    """y[t] = sum over s <= t of k[s] u[t - s], as a triangular matrix a channel: O(L^2)."""
    L = u_BdL.shape[-1]
    lag = torch.arange(L).view(-1, 1) - torch.arange(L).view(1, -1)
    toeplitz_dLL = torch.where(lag >= 0, k_dL[:, lag.clamp_min(0)], 0.0)
    return torch.einsum("dts,bds->bdt", toeplitz_dLL, u_BdL)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def tensors(B: int, d: int, L: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * B + 100 * d + L)
    return (
        torch.randn(B, d, L, generator=generator, dtype=torch.float64),
        torch.randn(d, L, generator=generator, dtype=torch.float64),
        torch.randn(B, d, L, generator=generator, dtype=torch.float64),
    )


def check(u: Tensor, k: Tensor, dy: Tensor) -> None:
    u, k = u.requires_grad_(), k.requires_grad_()
    wanted = direct(u, k)
    wanted_du, wanted_dk = torch.autograd.grad(wanted, (u, k), dy)
    u32, k32 = u.detach().float().requires_grad_(), k.detach().float().requires_grad_()
    found = causal_convolution(u32, k32)
    found_du, found_dk = torch.autograd.grad(found, (u32, k32), dy.float())
    assert found.dtype == torch.float32 and found.shape == u.shape
    assert relative_error(found, wanted) < 2e-6
    assert relative_error(found_du, wanted_du) < 2e-6
    assert relative_error(found_dk, wanted_dk) < 2e-6


@pytest.mark.parametrize("L", [1, 2, 3, 5, 17, 64, 101])
@pytest.mark.parametrize("B", [1, 3])
def test_forward_and_both_gradients_equal_the_direct_sum(B: int, L: int) -> None:
    check(*tensors(B, 2, L))


@pytest.mark.parametrize("channels_at_once", [1, 2, 4])
def test_groups_of_channels_that_do_not_divide_the_width_change_nothing(
    channels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    B, d, L = 2, 5, 9
    monkeypatch.setattr(fft_convolution, "_GROUP_ELEMENTS", channels_at_once * B * good_fft_length(2 * L - 1))
    check(*tensors(B, d, L))


def test_inputs_that_are_not_contiguous_give_the_same_result() -> None:
    u, k, dy = tensors(2, 3, 11)
    strided_u = u.transpose(1, 2).contiguous().transpose(1, 2)
    strided_k = k.t().contiguous().t()
    assert not strided_u.is_contiguous() and not strided_k.is_contiguous()
    check(strided_u, strided_k, dy.transpose(1, 2).contiguous().transpose(1, 2))


def test_nothing_after_a_token_reaches_it() -> None:
    u, k, _ = tensors(1, 2, 33)
    changed = u.clone()
    changed[..., 20:] += 1.0
    before, after = causal_convolution(u, k), causal_convolution(changed, k)
    torch.testing.assert_close(before[..., :20], after[..., :20], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[..., 20:], after[..., 20:], atol=1e-3)


def test_backward_leaves_its_inputs_and_the_incoming_gradient_alone() -> None:
    u, k, dy = (tensor.float() for tensor in tensors(2, 2, 8))
    copies = [tensor.clone() for tensor in (u, k, dy)]
    y = causal_convolution(u.requires_grad_(), k.requires_grad_())
    torch.autograd.grad(y, (u, k), dy)
    for tensor, copy in zip((u, k, dy), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_autocast_changes_nothing() -> None:
    u, k, _ = (tensor.float() for tensor in tensors(1, 2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        inside = causal_convolution(u, k)
    assert torch.equal(inside, causal_convolution(u, k))


def test_the_fft_length_is_the_smallest_with_no_prime_factor_above_five() -> None:
    def smooth(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    good = [n for n in range(1, 5000) if smooth(n)]
    for minimum in range(1, 4097):
        assert good_fft_length(minimum) == next(n for n in good if n >= minimum)
