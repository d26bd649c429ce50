"""The `ranks` fixture: pools of real processes that live for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Pool]]:
    """`ranks(world)` is the pool of that many processes; it starts at its first use."""
    pools: dict[int, Pool] = {}

    def pool(world: int) -> Pool:
        return pools.setdefault(world, Pool(world))

    yield pool
    for each in pools.values():
        each.close()
