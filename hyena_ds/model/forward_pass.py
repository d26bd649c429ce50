"""How one forward and backward pass runs: everything that is neither token ids nor parameters.

It is passed to every forward; no module stores it, so one engine serves every context stage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from hyena_ds.config.policy import POLICIES, Policy
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.kernels import Kernels
from hyena_ds.ops import place
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.ops.sizes import AT_WORK, pieces_of_a_block
from hyena_ds.ops.tiles import Tile
from hyena_ds.parallel.layout import Exchange, Layout

Watch: TypeAlias = Callable[[Tensor, Tensor], None]
"""watch(r_BlD, u_BDl): a block's residual, and its long convolution's input, which is overwritten afterwards."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One micro step on one rank."""

    layout: Layout
    """Which tokens are here, and how to reach the others."""
    dropout: DropoutKey | None = None
    """What the dropout masks depend on; None drops nothing."""
    filters: FilterCache = field(default_factory=FilterCache)
    """Where the filters of the optimizer step are kept; by default of this pass alone."""
    policy: Policy = POLICIES["balanced"]
    """What is kept for backward."""
    compute_dtype: torch.dtype = torch.float32
    """Precision of the projections and the MLP; filter, FFT, norms, residual and loss are always float32."""
    exchange_dtype: torch.dtype = torch.float32
    """Precision of the long convolution's inputs and outputs on their way between ranks, and in a device's memory."""
    convolution: Convolution = FFT
    """The long convolution's back end; the same on every rank."""
    kernels: Kernels | None = None
    """What computes everything else of a block and the embedding; None is the portable code. The same on every rank."""
    blocks_after: int = sys.maxsize
    """How many blocks come after the one that is at work, if one is."""
    watch: Watch | None = None
    """Called by every block in turn, for those who go on where this pass ends. On a grid every rank watches; it may be
    collective."""

    @property
    def exchange(self) -> Exchange:
        """The layout's, which packs as these kernels do."""
        exchange = self.layout.exchange
        if self.kernels is None or self.kernels.copy_pieces is None:
            return exchange
        return replace(exchange, copy_pieces=self.kernels.copy_pieces)

    def moved_dtype(self, device: torch.device) -> torch.dtype:
        """The type of the long convolution's inputs and outputs. On a CPU that has the whole sequence they go nowhere."""
        moves = self.layout.exchange.size > 1 or place.on_device(device)
        return self.exchange_dtype if moves else torch.float32

    def pieces(self, device: torch.device, at_work: int = AT_WORK) -> int:
        """Into how many pieces what could be done at once, with so many tensors, is cut on `device`."""
        if not place.on_device(device):
            return 1
        return pieces_of_a_block(self.policy.kept_units, self.blocks_after, at_work)

    def drops(self, probability: float) -> bool:
        """Whether `drop` does anything."""
        return self.dropout is not None and probability > 0.0

    def drop(self, x_BnD: Tensor, tile: Tile, layer: int, probability: float) -> Tensor:
        """Dropout of a tile's activations; `layer` tells the calls of one forward apart."""
        key = None if self.dropout is None else self.dropout.of(tile.rows)
        return keyed_dropout(x_BnD, probability, key, layer, self.layout.offset + tile.first)
