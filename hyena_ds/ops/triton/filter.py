"""The implicit filter and its gradient with features made in registers; beside model/filter.py.

    n --> z = [t, cos, -sin, 1] --W1--> a1 --sin(f a)--> h1 --W2, b2--> a2 --> h2 --W3, b3--> a3 --> h3 --W4--> x window = k

Reads weights and writes k, 4 D bytes a token; backward reads dk, 4 D bytes, and computes the rest again. Everything is float32
and products are IEEE; angles are float64 until their cosine is rounded. Row 0 of the features is time, the others cosines of
turns n + phase: -sin is a cosine a quarter turn on. The row after them is 1, so that the first bias is a column of the first
weight. The window exp(-n decay) is two factors: of a program's first token, from float64, and of the tokens within.

l local length, c tokens of a step, D width, E features and the 1, padded, F width of the filter's MLP.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.programs import steps_of
from hyena_ds.ops.triton.traffic import Traffic, traffic

_TOKENS = 32
_CHANNELS = 64
_STEPS = 4
_STEPS_BACKWARD = 64
_WARPS = 8


class FilterTensors(NamedTuple):
    """What a filter is made of: its MLP's parameters in float32, features and decay in float64."""

    input_weight_FE: Tensor
    input_bias_F: Tensor
    hidden1_weight_FF: Tensor
    hidden1_bias_F: Tensor
    hidden2_weight_FF: Tensor
    hidden2_bias_F: Tensor
    output_weight_DF: Tensor
    frequency_F: Tensor
    turns_E: Tensor
    """float64: time a token, then of each feature its turns a token."""
    phase_E: Tensor
    """float64, in turns."""
    decay_D: Tensor
    """float64: the window of channel d at position n is exp(-decay[d] n) + shift."""
    shift: float


class FilterGradients(NamedTuple):
    """float32, in the shapes of the parameters, the frequency as (F,)."""

    input_weight_FE: Tensor
    input_bias_F: Tensor
    hidden1_weight_FF: Tensor
    hidden1_bias_F: Tensor
    hidden2_weight_FF: Tensor
    hidden2_bias_F: Tensor
    output_weight_DF: Tensor
    frequency_F: Tensor


def filter_values(tensors: FilterTensors, offset: int, k_Dl: Tensor) -> Tensor:
    """Write the filter at positions offset ... offset + l into `k`, float32."""
    D, l = k_Dl.shape
    assert k_Dl.stride(1) == 1
    steps = steps_of(l, _TOKENS, _STEPS)
    _values_kernel[(triton.cdiv(l, _TOKENS * steps),)](
        k_Dl, k_Dl.stride(0), *_prepared(tensors), tensors.shift, offset, l, D, *_sizes(tensors),
        tensors.shift != 0.0, _TOKENS, _power(D, 16), min(_CHANNELS, _power(D, 16)), steps, num_warps=_WARPS,
    )  # fmt: skip
    return k_Dl


def filter_gradients(tensors: FilterTensors, offset: int, dk_Dl: Tensor) -> FilterGradients:
    """Gradients of the parameters for the gradient of the filter at positions offset ... offset + l."""
    D, l = dk_Dl.shape
    assert dk_Dl.stride(1) == 1
    F, E = tensors.input_weight_FE.shape
    steps = steps_of(l, _TOKENS, _STEPS_BACKWARD)
    programs = triton.cdiv(l, _TOKENS * steps)
    F_padded, E_padded = _sizes(tensors)

    def sums(*shape: int) -> Tensor:
        return torch.empty((programs, *shape), device=dk_Dl.device, dtype=torch.float32)

    parts = (
        sums(F_padded, E_padded), sums(F_padded, F_padded), sums(F_padded, F_padded), sums(3, F_padded),
        sums(_power(D, 16), F_padded),
    )  # fmt: skip
    _gradients_kernel[(programs,)](
        dk_Dl, dk_Dl.stride(0), *_prepared(tensors), tensors.shift, *parts, offset, l, D, F_padded, E_padded,
        tensors.shift != 0.0, _TOKENS, _power(D, 16), steps, num_warps=_WARPS,
    )  # fmt: skip
    input_FE, hidden1_FF, hidden2_FF, vectors_3F, output_DF = (part.sum(0) for part in parts)
    return FilterGradients(
        input_FE[:F, :E].contiguous(), input_FE[:F, E].contiguous(), hidden1_FF[:F, :F].contiguous(), vectors_3F[0, :F],
        hidden2_FF[:F, :F].contiguous(), vectors_3F[1, :F], output_DF[:D, :F].contiguous(), vectors_3F[2, :F],
    )  # fmt: skip


def filter_traffic(k_Dl: Tensor, backward: bool) -> Traffic:
    """Bytes of `filter_values`, or of `filter_gradients` but for its sums."""
    return traffic((k_Dl,), ()) if backward else traffic((), (k_Dl,))


def _power(size: int, least: int) -> int:
    return int(max(least, 1 << (size - 1).bit_length()))


def _sizes(tensors: FilterTensors) -> tuple[int, int]:
    F, E = tensors.input_weight_FE.shape
    return _power(F, 16), _power(E + 1, 16)


def _prepared(tensors: FilterTensors) -> tuple[Tensor, ...]:
    """Parameters padded with zeros to powers of two, so that kernels need no masks for them; decay to the base 2."""
    (F, E), D = tensors.input_weight_FE.shape, tensors.decay_D.numel()
    F_padded, E_padded = _sizes(tensors)
    D_padded = _power(D, 16)

    def padded(x: Tensor, *shape: int) -> Tensor:
        room = x.new_zeros(shape)
        room[tuple(slice(size) for size in x.shape)] = x
        return room

    first_FE = padded(tensors.input_weight_FE, F_padded, E_padded)
    first_FE[:F, E] = tensors.input_bias_F
    return (
        first_FE,
        padded(tensors.hidden1_weight_FF, F_padded, F_padded),
        padded(tensors.hidden1_bias_F, F_padded),
        padded(tensors.hidden2_weight_FF, F_padded, F_padded),
        padded(tensors.hidden2_bias_F, F_padded),
        padded(tensors.output_weight_DF, D_padded, F_padded),
        padded(tensors.frequency_F, F_padded),
        # The row of the 1 and those after it are cosines of nothing.
        padded(2.0 * math.pi * tensors.turns_E, E_padded),
        padded(2.0 * math.pi * tensors.phase_E, E_padded),
        padded(math.log2(math.e) * tensors.decay_D, D_padded),
    )


@triton.jit
def _features(position_c, angle, phase, E: tl.constexpr):
    """z (E, c). Time is what 2 pi is taken out of again."""
    e = tl.arange(0, E)
    turned = tl.load(angle + e)[:, None] * position_c.to(tl.float64)[None, :]
    wave = tl.cos(turned + tl.load(phase + e)[:, None]).to(tl.float32)
    return tl.where(e[:, None] == 0, (turned * 0.15915494309189535).to(tl.float32), wave)


@triton.jit
def _window(decay_d, first, within_c, shift, SHIFT: tl.constexpr):
    """(d, c); `decay` to the base 2, the first factor's exponent split in float64 so that its fraction keeps its bits."""
    exponent = decay_d * first.to(tl.float64)
    whole = tl.floor(exponent)
    before = tl.exp2((whole - exponent).to(tl.float32)) * tl.exp2(-whole.to(tl.float32))
    window = before[:, None] * tl.exp2(-(decay_d.to(tl.float32)[:, None] * within_c.to(tl.float32)[None, :]))
    if SHIFT:
        window += shift
    return window


@triton.jit(do_not_specialize=("offset", "shift"))
def _values_kernel(
    k, k_D, w1, w2, b2, w3, b3, w4, frequency, angle, phase, decay, shift, offset, l, channels,
    F: tl.constexpr, E: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, PADDED: tl.constexpr,
    CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    f = tl.arange(0, F)
    e = tl.arange(0, E)
    c = tl.arange(0, TOKENS)
    frequency_F1 = tl.load(frequency + f)[:, None]
    for step in range(STEPS):
        begin = (tl.program_id(0) * STEPS + step) * TOKENS
        first = tl.cast(offset, tl.int64) + begin
        h = tl.dot(
            tl.load(w1 + f[:, None] * E + e[None, :]), _features(first + c, angle, phase, E), input_precision="ieee"
        )
        h = tl.sin(frequency_F1 * h)
        h = tl.dot(tl.load(w2 + f[:, None] * F + f[None, :]), h, input_precision="ieee") + tl.load(b2 + f)[:, None]
        h = tl.sin(frequency_F1 * h)
        h = tl.dot(tl.load(w3 + f[:, None] * F + f[None, :]), h, input_precision="ieee") + tl.load(b3 + f)[:, None]
        h = tl.sin(frequency_F1 * h)
        for channel in range(0, PADDED, CHANNELS):
            d = channel + tl.arange(0, CHANNELS)
            value = tl.dot(tl.load(w4 + d[:, None] * F + f[None, :]), h, input_precision="ieee")
            value *= _window(tl.load(decay + d), first, c, shift, SHIFT)
            at = d[:, None].to(tl.int64) * k_D + begin + c[None, :]
            tl.store(k + at, value, mask=(d[:, None] < channels) & (begin + c[None, :] < l))


@triton.jit(do_not_specialize=("offset", "shift"))
def _gradients_kernel(
    dk, dk_D, w1, w2, b2, w3, b3, w4, frequency, angle, phase, decay, shift, s1, s2, s3, vectors, s4, offset, l, channels,
    F: tl.constexpr, E: tl.constexpr, SHIFT: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    f = tl.arange(0, F)
    e = tl.arange(0, E)
    c = tl.arange(0, TOKENS)
    d = tl.arange(0, CHANNELS)
    frequency_F1 = tl.load(frequency + f)[:, None]
    at_FE = f[:, None] * E + e[None, :]
    at_FF = f[:, None] * F + f[None, :]
    at_DF = d[:, None] * F + f[None, :]
    dw1 = tl.zeros((F, E), tl.float32)
    dw2 = tl.zeros((F, F), tl.float32)
    dw3 = tl.zeros((F, F), tl.float32)
    dw4 = tl.zeros((CHANNELS, F), tl.float32)
    db2 = tl.zeros((F,), tl.float32)
    db3 = tl.zeros((F,), tl.float32)
    df = tl.zeros((F,), tl.float32)
    for step in range(STEPS):
        begin = (tl.program_id(0) * STEPS + step) * TOKENS
        first = tl.cast(offset, tl.int64) + begin
        z = _features(first + c, angle, phase, E)
        a1 = tl.dot(tl.load(w1 + at_FE), z, input_precision="ieee")
        h1 = tl.sin(frequency_F1 * a1)
        a2 = tl.dot(tl.load(w2 + at_FF), h1, input_precision="ieee") + tl.load(b2 + f)[:, None]
        h2 = tl.sin(frequency_F1 * a2)
        a3 = tl.dot(tl.load(w3 + at_FF), h2, input_precision="ieee") + tl.load(b3 + f)[:, None]
        h3 = tl.sin(frequency_F1 * a3)
        at = d[:, None].to(tl.int64) * dk_D + begin + c[None, :]
        dk_dc = tl.load(dk + at, mask=(d[:, None] < channels) & (begin + c[None, :] < l), other=0.0)
        dk_dc *= _window(tl.load(decay + d), first, c, shift, SHIFT)
        dw4 = tl.dot(dk_dc, tl.trans(h3), dw4, input_precision="ieee")
        dh = tl.dot(tl.trans(tl.load(w4 + at_DF)), dk_dc, input_precision="ieee")
        # sin(f a), a = W h + b: with s = dh cos(f a), df = sum of s a and da = f s
        s = dh * tl.cos(frequency_F1 * a3)
        df += tl.sum(s * a3, 1)
        s *= frequency_F1
        dw3 = tl.dot(s, tl.trans(h2), dw3, input_precision="ieee")
        db3 += tl.sum(s, 1)
        dh = tl.dot(tl.trans(tl.load(w3 + at_FF)), s, input_precision="ieee")
        s = dh * tl.cos(frequency_F1 * a2)
        df += tl.sum(s * a2, 1)
        s *= frequency_F1
        dw2 = tl.dot(s, tl.trans(h1), dw2, input_precision="ieee")
        db2 += tl.sum(s, 1)
        dh = tl.dot(tl.trans(tl.load(w2 + at_FF)), s, input_precision="ieee")
        s = dh * tl.cos(frequency_F1 * a1)
        df += tl.sum(s * a1, 1)
        s *= frequency_F1
        dw1 = tl.dot(s, tl.trans(z), dw1, input_precision="ieee")
    program = tl.program_id(0)
    tl.store(s1 + program * F * E + at_FE, dw1)
    tl.store(s2 + program * F * F + at_FF, dw2)
    tl.store(s3 + program * F * F + at_FF, dw3)
    tl.store(s4 + program * CHANNELS * F + at_DF, dw4)
    tl.store(vectors + program * 3 * F + f, db2)
    tl.store(vectors + (program * 3 + 1) * F + f, db3)
    tl.store(vectors + (program * 3 + 2) * F + f, df)
