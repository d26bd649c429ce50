"""Dropout whose mask is a function of (seed, step, sample, position, layer), not of a generator's state.

Any grid, any recompute and any restart draw the same mask: a rank needs to know only which samples and positions of
the global batch its activations are.

B batch, l local length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
Number = TypeVar("Number", Tensor, int)


@dataclass(frozen=True, eq=False)
class DropoutKey:
    """What, with position and layer, a mask depends on. `None` in its place means no dropout."""

    seed: int
    step: int | Tensor
    """A scalar int64 tensor where a recorded pass reads it (training/graphs.py)."""
    samples_B: Tensor
    """Number of each sequence within the step's global batch (int64, on the activations' device)."""

    def of(self, rows: slice) -> DropoutKey:
        """The key of some of the sequences."""
        return DropoutKey(self.seed, self.step, self.samples_B[rows])


def keyed_dropout(x_BlD: Tensor, probability: float, key: DropoutKey | None, layer: int, offset: int) -> Tensor:
    """Zero elements with `probability` and scale the rest by 1 / (1 - probability).

    `offset` is the position of the first local token in its sequence; `layer` tells the calls of one forward apart.
    """
    if key is None or probability == 0.0:
        return x_BlD
    _, l, D = x_BlD.shape
    device = x_BlD.device
    base = _mix(_mix(_mix(key.seed & _MASK32) + key.step & _MASK32) + layer & _MASK32)
    samples_B11 = _mix(base + key.samples_B.view(-1, 1, 1) & _MASK32)
    positions_l1 = torch.arange(offset, offset + l, device=device).view(-1, 1)
    # Past 2^32 the upper word is mixed in apart (twice, or it would stand for a lower one); the mix of 0 is 0.
    words_l1 = _mix(positions_l1 & _MASK32) ^ _mix(_mix(positions_l1 >> 32))
    rows_Bl1 = _mix(samples_B11 ^ words_l1)
    bits_BlD = _mix(rows_Bl1 + _mix(torch.arange(D, device=device)) & _MASK32)
    keep_BlD = bits_BlD >= int(probability * (1 << 32))
    return x_BlD * keep_BlD / (1.0 - probability)


def _mix(x: Number) -> Number:
    """A 32-bit finaliser in int64 arithmetic (constants below 2^31, so no product overflows), of a tensor or one number.

    Source: hash-prospector's two-round search (github.com/skeeto/hash-prospector), 16 21f0aaad 15 735a2d97 15.
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _MASK32
    x = (x ^ (x >> 15)) * 0x735A2D97 & _MASK32
    return x ^ (x >> 15)
