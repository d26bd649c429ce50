"""Causal long convolution by real FFTs, forward and backward, on as many channels as the caller gives.

    y[t] = sum over s <= t of k[s] u[t - s]          u_BgL, k_gL -> y_BgL

Autograd's backward of rfft runs a complex FFT of twice the length; here every transform is real. Unless
spectra are asked for nothing is kept: what backward needs is transformed again, which costs no more than what autograd does
with everything kept.

B batch, g channels, L context length, n FFT length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.ops.large import empty
from hyena_ds.ops.sizes import channels_of_a_group, fft_length


def channels_at_once(batch: int, channels: int, context_length: int, device: torch.device) -> int:
    """Channels that one call should get on `device`."""
    return channels_of_a_group(batch, channels, context_length, device.type == "cpu")


def causal_convolution(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
    """y of the shape of u; all float32. The result may be a view of a longer tensor."""
    U, K = _spectrum(u_BgL), _spectrum(k_gL)
    return _signal(U.mul_(K), u_BgL.shape[-1])


def causal_convolution_with_spectra(u_BgL: Tensor, k_gL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, U, K): the output and what `causal_convolution_backward_from_spectra` needs."""
    U, K = _spectrum(u_BgL), _spectrum(k_gL)
    return _signal(U * K, u_BgL.shape[-1]), U, K


def causal_convolution_backward(
    dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(du, dk, y): gradients of both inputs and, `again`, the output once more for one transform in place of three."""
    L = dy_BgL.shape[-1]
    U, K = _spectrum(u_BgL), _spectrum(k_gL)
    y_BgL = _signal(U * K, L) if again else None
    dY = _spectrum(dy_BgL)
    dk_gL = _signal(_over_batch(U.conj_physical_().mul_(dY)), L)
    del U
    return _signal(dY.mul_(K.conj_physical_()), L), dk_gL, y_BgL


def causal_convolution_backward_from_spectra(dy_BgL: Tensor, U: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """(du, dk). Backward of a convolution is a correlation: the conjugate spectrum."""
    L = dy_BgL.shape[-1]
    dY = _spectrum(dy_BgL)
    dk_gL = _signal(_over_batch(torch.conj_physical(U).mul_(dY)), L)
    return _signal(dY.mul_(torch.conj_physical(K)), L), dk_gL


def _over_batch(spectra_Bg: Tensor) -> Tensor:
    """Their sum; without a copy when there is one."""
    return spectra_Bg[0] if spectra_Bg.shape[0] == 1 else spectra_Bg.sum(0)


def _spectrum(x_L: Tensor) -> Tensor:
    L, n = x_L.shape[-1], fft_length(x_L.shape[-1], x_L.device.type == "cpu")
    padded_n = empty((*x_L.shape[:-1], n), x_L.device)
    padded_n[..., :L] = x_L
    padded_n[..., L:].zero_()
    spectrum: Tensor = torch.fft.rfft(padded_n)
    return spectrum


def _signal(spectrum: Tensor, L: int) -> Tensor:
    signal: Tensor = torch.fft.irfft(spectrum, n=fft_length(L, spectrum.device.type == "cpu"))
    return signal[..., :L]
