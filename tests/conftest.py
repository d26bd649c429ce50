"""The `ranks` fixture: pools of real processes that live for the whole session. And signals, as tests expect them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from hyena_ds.runtime.interruption import SIGNALS
from tests.distributed.pool import Pool


def pytest_configure() -> None:
    """What this process was told to ignore (`nohup make test &`), it still does; its children are told nothing of it.

    A signal that is ignored is so in every child, where many tests send it. One with a handler is as usual there.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Pool]]:
    """`ranks(world)` is the pool of that many processes; it starts at its first use."""
    pools: dict[int, Pool] = {}

    def pool(world: int) -> Pool:
        return pools.setdefault(world, Pool(world))

    yield pool
    for each in pools.values():
        each.close()
