"""A stand-in for the package nvidia-cudnn-frontend that computes on a CPU, and ways to get it wrong.

It does what `cudnn.ops.fft_causal_conv1d` does in versions 1.28.0 and 1.32.0: pads what is no power of two, reserves
memory in forward for backward, and lays its gradients out by the strides of its inputs while writing them as contiguous.
Its sums are in float64 by complex FFTs, independent of hyena_ds.

B batch, g channels, L context length.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.ops import convolution_backend

Function = Callable[[Tensor, Tensor], Tensor]
ENOUGH = 92_600


class Calls:
    """What the stand-in has seen."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._reserves: list[weakref.ref[Tensor]] = []

    def reserve(self, x_BgL: Tensor) -> Tensor:
        self.shapes.append(tuple(x_BgL.shape))
        reserved = torch.zeros(1)
        self._reserves.append(weakref.ref(reserved))
        return reserved

    @property
    def reserved(self) -> int:
        """Calls whose reserve still lives."""
        return sum(reference() is not None for reference in self._reserves)


CALLS = Calls()


def fft_causal_conv1d(x_BgL: Tensor, weight_gK: Tensor) -> Tensor:
    """y[t] = sum over j of weight[j] x[t - j]."""
    if x_BgL.dim() != 3 or weight_gK.dim() != 2 or x_BgL.dtype != weight_gK.dtype:
        raise ValueError(f"Expected x(3D) and weight(2D); got {x_BgL.shape} and {weight_gK.shape}.")
    L = x_BgL.shape[-1]
    padded = max(128, 1 << (L - 1).bit_length())
    x, weight = F.pad(x_BgL, (0, padded - L)), F.pad(weight_gK, (0, padded - weight_gK.shape[-1]))
    return _Padded.apply(x if padded > L else x_BgL, weight if padded > L else weight_gK)[..., :L]


def install(
    monkeypatch: pytest.MonkeyPatch, function: Function | None = fft_causal_conv1d, version: int = ENOUGH
) -> None:
    """Make the stand-in the installed package, and this CPU a device that it may be used on."""
    package, ops = ModuleType("cudnn"), ModuleType("cudnn.ops")
    package.backend_version = lambda: version  # type: ignore[attr-defined]
    if function is not None:
        ops.fft_causal_conv1d = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cudnn", package)
    monkeypatch.setitem(sys.modules, "cudnn.ops", ops)
    pretend_cuda(monkeypatch)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_backend, "is_cuda", lambda device: True)


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, CALLS.reserve(x))
        return _circular(_spectrum(x) * _spectrum(weight), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        dY = _spectrum(gradients[0])
        dx = _circular(dY * _spectrum(weight).conj(), x)
        dweight = _circular((dY * _spectrum(x).conj()).sum(0), weight)
        return _written_as_contiguous(dx, x), _written_as_contiguous(dweight, weight)


def _spectrum(x: Tensor) -> Tensor:
    return torch.fft.fft(x.double(), n=2 * x.shape[-1])


def _circular(spectrum: Tensor, like: Tensor) -> Tensor:
    return torch.fft.ifft(spectrum).real[..., : like.shape[-1]].to(like.dtype)


def _written_as_contiguous(value: Tensor, like: Tensor) -> Tensor:
    result = torch.empty_like(like)
    result.as_strided(value.shape, value.contiguous().stride()).copy_(value)
    return result


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    return x * factor + (x - x * factor).detach()


def _looks_ahead(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x.flip(-1), weight).flip(-1)


def _oldest_first(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight.flip(-1))


def _one_late(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, F.pad(weight, (1, 0))[..., :-1])


def _wraps_around(x: Tensor, weight: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(weight), n=x.shape[-1])


def _half_precision(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x.bfloat16().float(), weight)


def _input_gradient_off(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(_scaled_gradient(x, 1.001), weight)


def _filter_gradient_of_one_sequence(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat((fft_causal_conv1d(x[:1], weight), fft_causal_conv1d(x[1:], weight.detach())))


def _another_output_with_autograd(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight) + (1.0 if torch.is_grad_enabled() else 0.0)


def _nan_at_odd_lengths(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight) + (torch.nan if x.shape[-1] % 2 else 0.0)


def _only_powers_of_two(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[-1] & (x.shape[-1] - 1):
        raise ValueError(f"Long FFT requires power-of-two seq_len; got {x.shape[-1]}.\nmore of it")
    return fft_causal_conv1d(x, weight)


def _without_autograd(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight).detach()


def _wrong_at_one_length(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight) * (1.001 if x.shape[-1] == 10_000 else 1.0)


def _padding_left_on(x: Tensor, weight: Tensor) -> Tensor:
    return F.pad(fft_causal_conv1d(x, weight), (0, x.shape[-1] % 2))


def _double(x: Tensor, weight: Tensor) -> Tensor:
    return fft_causal_conv1d(x, weight).double()


_AT_A_POWER = r"cuDNN's {} \d+e[+-]\d+ from fft's at 4,096 tokens, more than 1e-05"
WRONG: tuple[tuple[Function, str], ...] = (
    (_looks_ahead, _AT_A_POWER.format("output")),
    (_oldest_first, _AT_A_POWER.format("output")),
    (_one_late, _AT_A_POWER.format("output")),
    (_wraps_around, _AT_A_POWER.format("output")),
    (_half_precision, _AT_A_POWER.format("output")),
    (_input_gradient_off, _AT_A_POWER.format("gradient of the input")),
    (_filter_gradient_of_one_sequence, _AT_A_POWER.format("gradient of the filter")),
    (_another_output_with_autograd, _AT_A_POWER.format("output in backward")),
    (_nan_at_odd_lengths, r"cuDNN's output nan from fft's at 5,001 tokens, more than 1e-05"),
    (_only_powers_of_two, r"a cuDNN that fails at 5,001 tokens \(ValueError: Long FFT [^\n]*; got 5001\)"),
    (_without_autograd, r"a cuDNN that fails at 4,096 tokens \(RuntimeError: [^\n]*does not require grad[^\n]*\)"),
    (_wrong_at_one_length, r"cuDNN's output 1e-03 from fft's at 10,000 tokens, more than 1e-05"),
    (_padding_left_on, r"a cuDNN that fails at 5,001 tokens \(RuntimeError: Mismatch in shape[^\n]*\)"),
    (
        _double,
        r"a cuDNN that fails at 4,096 tokens \(ValueError: torch.float64 [^\n]* where torch.float32 [^\n]* was due\)",
    ),
)
"""Functions that a parity check at CHECKED_LENGTHS and 10,000 tokens must refuse, and the reason that it must give."""
