"""What a block keeps of its forward pass for backward, and what it recomputes: activation checkpointing by name.

    fastest ---- balanced ---- lean ---- leanest
    memory                                  time

Units below are one activation tensor, B x l x D float32, a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PolicyName = Literal["fastest", "balanced", "lean", "leanest"]


@dataclass(frozen=True)
class Policy:
    """Which intermediate results of a block live from forward to backward. Residuals at block inputs always do."""

    keep_middle: bool
    """The residual between the two half-blocks (1 unit); without it the operator's forward runs again."""
    keep_convolution: bool
    """Input and output of the long convolution (2 units); without them backward exchanges two tensors in and two out
    instead of one, and transforms once more."""
    keep_spectra: bool
    """The transforms of the convolution's input and of the filter (4 units) in place of its input; without them backward
    transforms both again."""
    keep_projections: bool
    """What the operator's projection gives (3 units); without it the projection runs again."""
    keep_inner: bool
    """The MLP before its GELU (inner width / width units); without it that projection runs again."""
    hold_projections: bool
    """Whether backward holds recomputed projections of the layer it is in (3 units in all) or projects twice."""
    keep_filter: bool
    """The filter between forward and backward when a step has one micro step (l x D a layer, whatever B)."""

    @property
    def kept_units(self) -> int:
        """Units a layer that live from forward to backward, the filter's among them; of an MLP four times as wide as the model."""
        units = 1 + self.keep_middle + 2 * self.keep_convolution + 3 * self.keep_spectra + 3 * self.keep_projections
        return units + 4 * self.keep_inner + self.keep_filter


POLICIES: dict[PolicyName, Policy] = {
    "fastest": Policy(True, True, True, True, True, True, True),
    "balanced": Policy(True, True, False, False, False, True, True),
    "lean": Policy(True, False, False, False, False, False, True),
    "leanest": Policy(False, False, False, False, False, False, False),
}

KEPT_UNITS: dict[PolicyName, int] = {name: policy.kept_units for name, policy in POLICIES.items()}
"""The leaner the later."""
