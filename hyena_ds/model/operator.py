"""The Hyena operator of order 2: the only part of the model that looks along the sequence.

    u --projection--> p --short filter--> x0, x1, v;  v x1 --long convolution--> y;  out projection(y x0)

Its two looks to the left are the halo of the short filter and the long convolution; both go through `Layout.exchange`.
Gates and the skip term stay on the token shard. Source: reference operator of the published HyenaDNA, order [x0, x1, v].

B batch, l local length, L context length, D width, d = D / sequence-parallel size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena_ds.model.filter import ImplicitFilter
from hyena_ds.ops.fft_convolution import causal_convolution
from hyena_ds.ops.short_convolution import HALO, short_convolution
from hyena_ds.parallel.layout import Layout


class ShortFilter(nn.Module):
    """Depth-wise 3-tap causal convolution; parameters as in a grouped Conv1d."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, HALO + 1))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, halo_B2C: Tensor, x_BlC: Tensor) -> Tensor:
        return short_convolution(halo_B2C, x_BlC, self.weight, self.bias)


class HyenaOperator(nn.Module):
    """(B, l, D) -> (B, l, D), causal over the whole sequence of the layout."""

    def __init__(self, width: int, implicit_filter: ImplicitFilter):
        super().__init__()
        self.in_projection = nn.Linear(width, 3 * width)
        self.short_filter = ShortFilter(3 * width)
        self.implicit_filter = implicit_filter
        self.skip = nn.Parameter(torch.empty(width))
        self.out_projection = nn.Linear(width, width)

    def forward(self, u_BlD: Tensor, layout: Layout) -> Tensor:
        exchange = layout.exchange
        halo_B2D = exchange.halo(u_BlD, HALO)
        p = self.in_projection(torch.cat((halo_B2D, u_BlD), dim=1))
        halo_B2C, p_BlC = p.split((HALO, u_BlD.shape[1]), dim=1)
        # Before the first token the short filter sees zeros, not projected zeros. Multiplied rather than replaced:
        # every rank keeps the halo in its graph, so that all of them run its backward.
        halo_B2C = halo_B2C * float(layout.offset > 0)
        x0_BlD, x1_BlD, v_BlD = self.short_filter(halo_B2C, p_BlC).chunk(3, dim=-1)
        v_BlD = v_BlD * x1_BlD
        k_1lD = self.implicit_filter(layout.offset, layout.local_length).unsqueeze(0)
        k_dL = exchange.to_channels(k_1lD).squeeze(0)
        y_BdL = causal_convolution(exchange.to_channels(v_BlD), k_dL)
        y_BlD = exchange.to_tokens(y_BdL) + self.skip * v_BlD
        return self.out_projection(y_BlD * x0_BlD)
