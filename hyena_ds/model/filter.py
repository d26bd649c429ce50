"""The implicit filter: a small sine MLP over positions, times an exponential window.

    t, w --> z = [t, cos(f w), -sin(f w)] --Linear, sin(freq x)--> ... --Linear--> h --x (exp(-t |delta|) + shift)--> k

A filter is a function of `maximum_context`, never of the input's length: shorter inputs use its prefix. A rank evaluates
it on its own tokens. Everything here is float32 under any precision: a bf16 time axis has 1,781 distinct values of a
million. Source: Hyena (arXiv 2302.10866) section 3.3, and the published HyenaFilter.

l local length, D width, E positional features, F width of the filter's MLP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_FAST_DECAY, _SLOW_DECAY, _DECAY_TARGET = 0.3, 1.5, 1e-2


class ImplicitFilter(nn.Module):
    """k_lD for positions offset .. offset + l of a filter that is defined over `maximum_context` positions."""

    def __init__(
        self, width: int, maximum_context: int, features: int, filter_width: int, frequency: float, shift: float
    ):
        super().__init__()
        self.width = width
        self.maximum_context = maximum_context
        self.features = features
        self.shift = shift
        self.input = nn.Linear(features, filter_width)
        self.hidden1 = nn.Linear(filter_width, filter_width)
        self.hidden2 = nn.Linear(filter_width, filter_width)
        self.output = nn.Linear(filter_width, width, bias=False)
        self.frequency = nn.Parameter(torch.full((1, filter_width), frequency))

    def forward(self, offset: int, length: int) -> Tensor:
        """(length, D), float32. Raises ValueError beyond `maximum_context`."""
        if offset + length > self.maximum_context:
            raise ValueError(
                f"positions up to {offset + length} were asked of a filter defined over {self.maximum_context}; "
                "a longer context needs a model with a larger maximum_context"
            )
        with torch.autocast(self.frequency.device.type, enabled=False):
            t_l1, z_lE = self.positions(offset, length)
            h_lF = torch.sin(self.frequency * self.input(z_lE))
            h_lF = torch.sin(self.frequency * self.hidden1(h_lF))
            h_lF = torch.sin(self.frequency * self.hidden2(h_lF))
            return self.output(h_lF) * (torch.exp(-t_l1 * self.decay_rates()) + self.shift)

    def positions(self, offset: int, length: int) -> tuple[Tensor, Tensor]:
        """Time t (length, 1) in 0..1 and features z (length, E), made in float64 and rounded once to float32."""
        device = self.frequency.device
        n_l1 = torch.arange(offset, offset + length, device=device, dtype=torch.float64).unsqueeze(1)
        t_l1 = n_l1 / (self.maximum_context - 1)
        bands = (self.features - 1) // 2
        f_b = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=torch.float64)
        angles_lb = f_b * (2.0 * math.pi * n_l1 / self.maximum_context)
        z_lE = torch.cat((t_l1, torch.cos(angles_lb), -torch.sin(angles_lb)), dim=1)
        return t_l1.float(), z_lE.float()

    def decay_rates(self) -> Tensor:
        """|delta| (D,): from slow to fast decay over the channels."""
        slow, fast = math.log(_DECAY_TARGET) / _SLOW_DECAY, math.log(_DECAY_TARGET) / _FAST_DECAY
        device = self.frequency.device
        return torch.linspace(slow, fast, self.width, device=device, dtype=torch.float64).abs().float()
