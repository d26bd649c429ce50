"""The long convolution against the sum that defines it, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_ds.ops import place
from hyena_ds.ops.fft_convolution import (
    causal_convolution,
    causal_convolution_backward,
    causal_convolution_backward_from_spectra,
    causal_convolution_with_spectra,
    channels_at_once,
)
from hyena_ds.ops.sizes import fft_length, good_fft_length


@pytest.fixture(params=["real transforms", "right-angle transforms"], autouse=True)
def _as_on_a_cpu_and_on_a_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "on_device", lambda device: request.param == "right-angle transforms")


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
    u32, k32, dy32 = u.detach().float(), k.detach().float(), dy.float()
    copies = [tensor.clone() for tensor in (u32, k32, dy32)]
    found = causal_convolution(u32, k32)
    assert found.dtype == torch.float32 and found.shape == u.shape
    assert relative_error(found, wanted) < 2e-6
    for again in (False, True):
        du, dk, y = causal_convolution_backward(dy32, u32, k32, again)
        assert relative_error(du, wanted_du) < 2e-6
        assert relative_error(dk, wanted_dk) < 2e-6
        assert y is None if not again else relative_error(y, wanted) < 2e-6
    y, *spectra = causal_convolution_with_spectra(u32, k32)
    assert relative_error(y, wanted) < 2e-6
    du, dk = causal_convolution_backward_from_spectra(dy32, *spectra)
    assert relative_error(du, wanted_du) < 2e-6 and relative_error(dk, wanted_dk) < 2e-6
    assert all(torch.equal(a, b) for a, b in zip((u32, k32, dy32), copies, strict=True)), "an input was changed"


@pytest.mark.parametrize("L", [1, 2, 3, 5, 17, 64, 101])
@pytest.mark.parametrize("B", [1, 3])
def test_forward_and_both_gradients_equal_the_direct_sum(B: int, L: int) -> None:
    check(*tensors(B, 2, L))


def test_inputs_that_are_not_contiguous_give_the_same_result() -> None:
    u, k, dy = tensors(2, 3, 11)
    strided_u = u.transpose(1, 2).contiguous().transpose(1, 2)
    strided_k = k.t().contiguous().t()
    assert not strided_u.is_contiguous() and not strided_k.is_contiguous()
    check(strided_u, strided_k, dy.transpose(1, 2).contiguous().transpose(1, 2))


def test_a_long_call_after_a_short_one_and_back_sees_nothing_of_the_other() -> None:
    for L in (64, 9, 33, 64):
        check(*tensors(2, 2, L))


def test_nothing_after_a_token_reaches_it() -> None:
    u, k, _ = tensors(1, 2, 33)
    changed = u.clone()
    changed[..., 20:] += 1.0
    before, after = causal_convolution(u, k), causal_convolution(changed, k)
    torch.testing.assert_close(before[..., :20], after[..., :20], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[..., 20:], after[..., 20:], atol=1e-3)


def test_a_million_tokens_agree_with_float64_on_a_few_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    L = 1 << 20
    u, dy = torch.randn(1, 2, L, generator=generator), torch.randn(1, 2, L, generator=generator)
    k = torch.randn(2, L, generator=generator) * torch.exp(-torch.linspace(0.0, 5.0, L))
    U, K, dY = (torch.fft.rfft(x.double(), n=2 * L) for x in (u, k, dy))
    wanted = [torch.fft.irfft(s, n=2 * L)[..., :L] for s in (U * K, dY * K.conj(), (dY * U.conj()).sum(0))]
    du, dk, y = causal_convolution_backward(dy, u, k, again=True)
    for found, right in zip((causal_convolution(u, k), du, dk, y), (wanted[0], *wanted[1:], wanted[0]), strict=True):
        # MKL's own batches of 2^21 points are off by 2e-6 on an Intel Xeon with AMX, single ones by 3e-7.
        assert relative_error(found, right) < 5e-6


@pytest.mark.parametrize(
    ("batch", "channels", "L"), [(1, 128, 1 << 20), (8, 64, 512), (1, 7, 64), (64, 16, 1 << 15), (1, 1, 4)]
)
def test_groups_of_channels_are_batches_of_transforms_that_stay_small(batch: int, channels: int, L: int) -> None:
    at_once = channels_at_once(batch, channels, L, torch.device("cpu"))
    assert 1 <= at_once <= channels
    assert at_once * batch >= 2 or at_once == channels
    assert at_once == 1 or at_once * batch * fft_length(L) <= max(1 << 21, 2 * fft_length(L))


def test_a_device_takes_a_power_of_two_where_it_is_little_longer() -> None:
    assert fft_length(1_000_000) == 2_000_000 and fft_length(1_000_000, on_cpu=False) == 1 << 21
    assert fft_length(160_000) == fft_length(160_000, on_cpu=False) == 320_000, "2^19 is 64 % longer"
    for L in range(1, 2000):
        half, best = fft_length(L, on_cpu=False) // 2, good_fft_length(L)
        assert half == best or (best < half <= 1.06 * best and half & (half - 1) == 0)


def test_the_fft_length_is_the_smallest_with_no_prime_factor_above_five() -> None:
    def smooth(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    good = [n for n in range(1, 5000) if smooth(n)]
    for minimum in range(1, 4097):
        assert good_fft_length(minimum) == next(n for n in good if n >= minimum)


def test_exchanged_channels_come_in_four_groups_or_more() -> None:
    device = torch.device("meta")
    assert channels_at_once(1, 32, 1_000_000, device) == 32
    assert channels_at_once(1, 32, 1_000_000, device, cut=True) == 8
    assert channels_at_once(1, 3, 1000, device, cut=True) == 1
    assert channels_at_once(1, 3, 1000, torch.device("cpu"), cut=True) == 2, "a single transform is slow there"
