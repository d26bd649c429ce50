"""Making a tiny case go through many tiles, channel groups and filter chunks, with remainders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from hyena_ds.ops import sizes


@contextmanager
def small_pieces(tokens: int = 5, transforms: int = 3) -> Iterator[None]:
    """Tiles and filter chunks of `tokens` tokens, and `transforms` FFTs at once, while it lasts."""
    with ExitStack() as stack:
        for module, name, value in (
            (sizes, "_CACHED_ELEMENTS", 0),
            (sizes, "_FEWEST_TOKENS", tokens),
            (sizes, "_CHUNK_ELEMENTS", 0),
            (sizes, "_GROUP_ELEMENTS", 0),
            (sizes, "_FEWEST_TRANSFORMS", transforms),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield
