"""The masks of ops/dropout.py, bit for bit, made in registers.

    base = mix(seed, step, layer)  on the host;   bits = mix(mix(mix(base + sample) ^ words(position)) + mix(channel))

B batch, n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.dropout import DropoutKey

_MASK32 = 0xFFFFFFFF
SCALARS = ("base", "offset", "threshold")
"""Arguments whose values change from call to call: kernels are not compiled again for them."""


@dataclass(frozen=True)
class Dropped:
    """One call's dropout as kernels take it."""

    base: int
    samples_B: Tensor
    offset: int
    threshold: int
    scale: float

    @classmethod
    def of(cls, key: DropoutKey, probability: float, layer: int, offset: int) -> Dropped:
        """As `keyed_dropout` of these; the words of 32 bits are given as signed ones."""
        base = _mix_here(_mix_here(_mix_here(key.seed & _MASK32) + key.step & _MASK32) + layer & _MASK32)
        threshold = int(probability * (1 << 32))
        return cls(_signed(base), key.samples_B, offset, _signed(threshold), 1.0 / (1.0 - probability))


def arguments(dropped: Dropped | None) -> tuple[object, ...]:
    """(base, samples, offset, threshold, scale) for a kernel; of no dropout, what it does not look at."""
    if dropped is None:
        return 0, None, 0, 0, 1.0
    return dropped.base, dropped.samples_B, dropped.offset, dropped.threshold, dropped.scale


def _mix_here(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _MASK32
    x = (x ^ (x >> 15)) * 0x735A2D97 & _MASK32
    return x ^ (x >> 15)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


@triton.jit
def _mix(x):
    """A 32-bit finaliser of uint32 (ops/dropout.py)."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def kept(base, sample, position, columns, threshold):
    """Whether elements stay: of one sample, int64 positions (n, 1) and columns (1, D)."""
    start = _mix(base.to(tl.uint32, bitcast=True) + sample.to(tl.uint32))
    words = _mix(position.to(tl.uint32)) ^ _mix(_mix((position >> 32).to(tl.uint32)))
    bits = _mix(_mix(start ^ words) + _mix(columns.to(tl.uint32)))
    return bits >= threshold.to(tl.uint32, bitcast=True)
