"""A causal long convolution whose inputs come one by one, each after the output before it: O(N log^2 N) for N of them.

    inputs of a prompt --one FFT convolution--> what they give to the N positions to come
    next input: inputs of its block of 64 --lag by lag--> outputs of the block
                end of a block, at position i: the last w inputs --FFT--> the next w outputs,  w the largest power of 2 in i

So every pair of an input and a later output is met once (relaxed multiplication; Flash Inference, arXiv 2410.12982,
algorithm 2). A block's lags are multiplied directly, token-major: one addition of products a position for all channels,
where a transform of a tile that short costs more than its Python. All sequences of a batch go through the same calls, one
by one where the result could depend on how many there are.

B batch, R channels (of all layers together), L prompt, N positions to come, S positions of a block, w of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena_ds.ops.fft_convolution import channels_at_once
from hyena_ds.ops.sizes import good_fft_length

BLOCK = 64
"""Positions whose lags are multiplied directly. CPU time of a step of 8 sequences, width 128, 2 layers, on an AMD EPYC: 463,
402, 385, 374, 418 µs for blocks of 16, 32, 64, 128, 256; of one sequence it is the same up to 128."""
_HELD_FROM = 4
"""Times that a tile's width must come for the filter's spectrum to be held."""


def continuation(u_BgL: Tensor, k_gT: Tensor, positions: int) -> Tensor:
    """What inputs give to the `positions` N after the last: y[L + n] = sum over s < L of k[L + n - s] u[s], (B, g, N).

    Lags up to T = L + N - 1 are read; float32, some channels at a time.
    """
    B, g, L = u_BgL.shape
    reach = L + positions
    # Only the first L - 1 of a circular convolution of that many points are wrapped into.
    points = good_fft_length(reach)
    y_BgN = u_BgL.new_empty((B, g, positions))
    at_once = channels_at_once(B, g, reach // 2 + 1, u_BgL.device)
    for first in range(0, g, at_once):
        here = slice(first, first + at_once)
        product = torch.fft.rfft(u_BgL[:, here], n=points).mul_(torch.fft.rfft(k_gT[here, :reach], n=points))
        y_BgN[:, here] = torch.fft.irfft(product, n=points)[..., L:reach]
    return y_BgN


class OnlineFilter:
    """A filter as online convolutions of up to N positions use it: k_RN, lags 0 .. N - 1."""

    def __init__(self, k_RN: Tensor):
        self.k_RN = k_RN
        self.near_S1R = k_RN.new_zeros((BLOCK, 1, k_RN.shape[0]))
        """The lags within a block."""
        near_RS = k_RN[:, :BLOCK]
        self.near_S1R[: near_RS.shape[1], 0] = near_RS.t()
        self._spectra: dict[int, tuple[Tensor, ...]] = {}

    def tile_groups(self, width: int) -> list[slice]:
        """Channels that are transformed at once for a tile."""
        R = self.k_RN.shape[0]
        at_once = channels_at_once(1, R, width, self.k_RN.device)
        return [slice(first, min(first + at_once, R)) for first in range(0, R, at_once)]

    def spectrum(self, width: int, number: int, channels: slice) -> Tensor:
        """The transform of lags 0 .. 2w - 1 of a group of channels; held where the tile comes often."""
        if width * 2 * _HELD_FROM > self.k_RN.shape[1]:
            return self._transformed(width, channels)
        if width not in self._spectra:
            self._spectra[width] = tuple(self._transformed(width, group) for group in self.tile_groups(width))
        return self._spectra[width][number]

    def _transformed(self, width: int, channels: slice) -> Tensor:
        spectrum: Tensor = torch.fft.rfft(self.k_RN[channels, : 2 * width], n=2 * width)
        return spectrum


class OnlineConvolution:
    """Convolutions of B sequences, all at the same position after their prompts.

    At each position: y = `now` + k[0] u, with u computed by the caller from outputs of other channels if it likes, and
    written to `inputs`; then `advance`. Both are lists over the positions of a block, of views that stay: `place` says which
    is the current one.
    """

    def __init__(self, filters: OnlineFilter, ahead_RN: Sequence[Tensor]):
        """`ahead` is what each sequence's prompt gives (`continuation`)."""
        R, N = ahead_RN[0].shape
        B = len(ahead_RN)
        assert filters.k_RN.shape == (R, N), "a filter of other channels or positions"
        self._filters, self._N = filters, N
        # Behind the current block inputs; from it on, what is known of the outputs.
        self._line_BRN = torch.stack(tuple(ahead_RN))
        self._now_SBR = self._line_BRN.new_zeros((BLOCK, B, R))
        self._u_SBR = torch.zeros_like(self._now_SBR)
        self.now = self._now_SBR.unbind()
        """What earlier inputs give to each position of the block, (B, R); final at the current position."""
        self.inputs = self._u_SBR.unbind()
        """Where the caller writes u of each position of the block, (B, R)."""
        self.place = 0
        """The current position's place in its block."""
        self._after = [self._now_SBR[place + 1 :] for place in range(BLOCK)]
        self._lags = [filters.near_S1R[1 : BLOCK - place] for place in range(BLOCK)]
        self._begin = 0
        self._load()

    @property
    def position(self) -> int:
        """Inputs so far."""
        return self._begin + self.place

    def advance(self) -> None:
        """Take the current position's input into account for all later positions, and go on."""
        place = self.place
        self._after[place].addcmul_(self.inputs[place], self._lags[place])
        self.place = place + 1
        if self.place == BLOCK:
            self._next_block()

    def _next_block(self) -> None:
        self._begin, self.place = self._begin + BLOCK, 0
        i, N = self._begin, self._N
        if i >= N:
            return
        self._line_BRN[..., i - BLOCK : i] = self._u_SBR.permute(1, 2, 0)
        width = i & -i
        outputs = min(width, N - i)
        for line_RN in self._line_BRN:
            for number, channels in enumerate(self._filters.tile_groups(width)):
                product = torch.fft.rfft(line_RN[channels, i - width : i], n=2 * width)
                product.mul_(self._filters.spectrum(width, number, channels))
                y_gw = torch.fft.irfft(product, n=2 * width)[:, width : width + outputs]
                line_RN[channels, i : i + outputs] += y_gw
        self._load()

    def _load(self) -> None:
        known_BRn = self._line_BRN[..., self._begin : self._begin + BLOCK]
        self._now_SBR[: known_BRn.shape[-1]] = known_BRn.permute(2, 0, 1)
