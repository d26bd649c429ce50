"""Causal long convolution by FFT, with a backward written by hand.

    y[t] = sum over s <= t of k[s] u[t - s]          u_BdL, k_dL -> y_BdL

Autograd's backward of rfft runs a complex FFT of twice the length; here every transform is real. Only the inputs are
kept for backward. Channels go through in groups, so that the spectra in flight stay small.

B batch, d channels, L context length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_GROUP_ELEMENTS = 1 << 22
"""Elements of the padded signal that one group of channels may hold."""


def good_fft_length(minimum: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least `minimum`: other lengths cost an FFT 6 to 8 times as much."""
    best = 1
    while best < minimum:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            candidate = three
            while candidate < minimum:
                candidate *= 2
            best = min(best, candidate)
            three *= 3
        five *= 5
    return best


def causal_convolution(u_BdL: Tensor, k_dL: Tensor) -> Tensor:
    """Linear causal convolution of every channel with its own filter, in float32 whatever the autocast state.

    u_BdL and k_dL are float32; the result has the shape of u_BdL. The FFT has at least 2L - 1 points, so nothing wraps
    into the first L.
    """
    return _CausalConvolution.apply(u_BdL.float(), k_dL.float())


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u_BdL: Tensor, k_dL: Tensor) -> Tensor:
        ctx.save_for_backward(u_BdL, k_dL)
        L = u_BdL.shape[-1]
        n = good_fft_length(2 * L - 1)
        y_BdL = torch.empty_like(u_BdL, memory_format=torch.contiguous_format)
        for c in _channel_groups(u_BdL, n):
            spectrum = torch.fft.rfft(u_BdL[:, c], n=n).mul_(torch.fft.rfft(k_dL[c], n=n))
            y_BdL[:, c] = torch.fft.irfft(spectrum, n=n)[..., :L]
        return y_BdL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BdL: Tensor) -> tuple[Tensor, Tensor]:
        u_BdL, k_dL = ctx.saved_tensors
        L = u_BdL.shape[-1]
        n = good_fft_length(2 * L - 1)
        du_BdL = torch.empty_like(u_BdL, memory_format=torch.contiguous_format)
        dk_dL = torch.empty_like(k_dL, memory_format=torch.contiguous_format)
        for c in _channel_groups(u_BdL, n):
            # Backward of a convolution is a correlation: the conjugate spectrum.
            dY = torch.fft.rfft(dy_BdL[:, c], n=n)
            U = torch.fft.rfft(u_BdL[:, c], n=n)
            dk_dL[c] = torch.fft.irfft(U.conj_physical_().mul_(dY).sum(0), n=n)[..., :L]
            K = torch.fft.rfft(k_dL[c], n=n)
            du_BdL[:, c] = torch.fft.irfft(dY.mul_(K.conj_physical_()), n=n)[..., :L]
        return du_BdL, dk_dL


def _channel_groups(u_BdL: Tensor, n: int) -> list[slice]:
    B, d, _ = u_BdL.shape
    size = max(1, _GROUP_ELEMENTS // (B * n))
    return [slice(start, min(start + size, d)) for start in range(0, d, size)]
