"""Cutting token-wise work into tiles whose intermediate results stay in a core's cache.

B batch, l local length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hyena_ds.ops.sizes import tokens_of_a_tile


@dataclass(frozen=True)
class Tile:
    """Tokens first .. last of the sequences of `rows`; whole sequences when there are several."""

    rows: slice
    first: int
    last: int

    @property
    def here(self) -> tuple[slice, slice]:
        """The tile's part of a token-major tensor (B, l, ...)."""
        return self.rows, slice(self.first, self.last)


def tiles(batch: int, length: int, widest: int, device: torch.device) -> Iterator[Tile]:
    """Cover (batch, length) from left to right; `widest` is the largest number of channels of a token in the work."""
    tokens = tokens_of_a_tile(widest, device.type == "cpu")
    rows = max(1, tokens // length)
    for row in range(0, batch, rows):
        for first in range(0, length, tokens):
            yield Tile(slice(row, min(row + rows, batch)), first, min(first + tokens, length))
