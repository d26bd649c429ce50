"""Causal long convolution by FFTs, forward and backward, on as many channels as the caller gives.

    y[t] = sum over s <= t of k[s] u[t - s]          u_BgL, k_gL -> y_BgL

Autograd's backward of rfft runs a complex FFT of twice the length; here every transform has as many numbers as the padded
signal. Unless spectra are asked for nothing is kept: what backward needs is transformed again, which costs no more than what
autograd does with everything kept.

On a CPU transforms are real, of n points. On a device they are complex, of n / 2: there a real one takes nearly twice as long
(docs/results/card.md).

B batch, g channels, L context length, n FFT length.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from hyena_ds.ops import place
from hyena_ds.ops.large import empty
from hyena_ds.ops.sizes import channels_of_a_group, fft_length, right_angle_points


def channels_at_once(batch: int, channels: int, context_length: int, device: torch.device, cut: bool = False) -> int:
    """Channels that one call should get on `device`; `cut` says whether they are exchanged."""
    return channels_of_a_group(batch, channels, context_length, device.type == "cpu", cut)


def causal_convolution(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
    """y of the shape of u; all float32. The result may be a view of a longer tensor."""
    transforms = _transforms(u_BgL)
    U, K = transforms.spectrum(u_BgL), transforms.spectrum(k_gL)
    return transforms.signal(U.mul_(K))


def causal_convolution_with_spectra(u_BgL: Tensor, k_gL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, U, K): the output and what `causal_convolution_backward_from_spectra` needs."""
    transforms = _transforms(u_BgL)
    U, K = transforms.spectrum(u_BgL), transforms.spectrum(k_gL)
    return transforms.signal(U * K), U, K


def causal_convolution_backward(
    dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(du, dk, y): gradients of both inputs and, `again`, the output once more for one transform in place of three."""
    transforms = _transforms(u_BgL)
    U, K = transforms.spectrum(u_BgL), transforms.spectrum(k_gL)
    y_BgL = transforms.signal(U * K) if again else None
    dY = transforms.spectrum(dy_BgL)
    transforms.give_back()
    dk_gL = transforms.signal(_over_batch(U.conj_physical_().mul_(dY)))
    del U
    return transforms.signal(dY.mul_(K.conj_physical_())), dk_gL, y_BgL


def causal_convolution_backward_from_spectra(dy_BgL: Tensor, U: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """(du, dk). Backward of a convolution is a correlation: the conjugate spectrum."""
    transforms = _transforms(dy_BgL)
    dY = transforms.spectrum(dy_BgL)
    transforms.give_back()
    dk_gL = transforms.signal(_over_batch(torch.conj_physical(U).mul_(dY)))
    return transforms.signal(dY.mul_(torch.conj_physical(K))), dk_gL


def _over_batch(spectra_Bg: Tensor) -> Tensor:
    """Their sum; without a copy when there is one."""
    return spectra_Bg[0] if spectra_Bg.shape[0] == 1 else spectra_Bg.sum(0)


def _transforms(like_L: Tensor) -> _Real | _RightAngle:
    L, device = like_L.shape[-1], like_L.device
    return _RightAngle(L, device) if place.on_device(device) else _Real(L)


class _Real:
    """Transforms of n >= 2L - 1 real numbers, the last of them zeros."""

    def __init__(self, L: int) -> None:
        self._L, self._points = L, fft_length(L)

    def spectrum(self, x_L: Tensor) -> Tensor:
        """The transform of `x`, in float32 whatever it is."""
        padded_n = empty((*x_L.shape[:-1], self._points), x_L.device)
        padded_n[..., : self._L] = x_L
        padded_n[..., self._L :].zero_()
        spectrum: Tensor = torch.fft.rfft(padded_n)
        return spectrum

    def signal(self, spectrum: Tensor) -> Tensor:
        """The first L numbers, a view."""
        signal: Tensor = torch.fft.irfft(spectrum, n=self._points)
        return signal[..., : self._L]

    def give_back(self) -> None:
        """Nothing is held."""


class _RightAngle:
    """Transforms of N >= L complex numbers, x[t] exp(i pi t / 2N).

    What a product of two spectra wraps around has made a quarter turn, so it is imaginary, and the real part is the causal
    convolution (right-angle convolution; Crandall and Fagin, Discrete weighted transforms, 1994). The weights hold N^-1/2 too,
    so that the product of any two needs no scale afterwards. Signals of one size are weighted in the same memory: work is
    done in order on a device.
    """

    def __init__(self, L: int, device: torch.device) -> None:
        self._L, self._points = L, right_angle_points(L)
        self._weights_N, self._back_N = _weights(self._points, device)
        self._weighted_N: Tensor | None = None

    def spectrum(self, x_L: Tensor) -> Tensor:
        """The transform of `x`, in float32 whatever it is."""
        shape = (*x_L.shape[:-1], self._points)
        if self._weighted_N is None or self._weighted_N.numel() != math.prod(shape):
            self._weighted_N = empty(shape, x_L.device, torch.complex64)
            self._weighted_N[..., self._L :].zero_()
        weighted_N = self._weighted_N.view(shape)
        torch.mul(x_L, self._weights_N[: self._L], out=weighted_N[..., : self._L])
        spectrum: Tensor = torch.fft.fft(weighted_N)
        return spectrum

    def signal(self, spectrum_N: Tensor) -> Tensor:
        """The first L numbers, a view."""
        weighted_N: Tensor = torch.fft.ifft(spectrum_N, norm="forward")
        return weighted_N.mul_(self._back_N).real[..., : self._L]

    def give_back(self) -> None:
        """The memory that signals were weighted in is free for others."""
        self._weighted_N = None


@lru_cache(maxsize=64)
def _weights(points: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What signals are multiplied with before a transform, and after one; held, since a CUDA graph reads them where they are."""
    turn_N = quarter_turn(points, device)
    return (turn_N * points**-0.5).to(torch.complex64), turn_N.conj().to(torch.complex64).resolve_conj()


def quarter_turn(points: int, device: torch.device) -> Tensor:
    """(N,): exp(i pi t / 2N), complex128."""
    angle_N = torch.arange(points, device=device, dtype=torch.float64) * (0.5 * math.pi / points)
    return torch.polar(torch.ones_like(angle_N), angle_N)
