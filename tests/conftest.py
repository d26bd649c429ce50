"""Fixtures that live for the whole session: pools of real processes, an installed wheel. And signals, as tests expect them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from hyena_ds.runtime.interruption import SIGNALS
from tests.distributed.pool import Pool
from tests.package.installed import Installed


def pytest_configure() -> None:
    """What this process was told to ignore (`nohup make test &`), it still does; its children are told nothing of it.

    A signal that is ignored is so in every child, where many tests send it. One with a handler is as usual there.
    The tests mean the CPU, also on a machine with a GPU, which `make gpu` looks at.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
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


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The package as an installed wheel, in an environment of its own."""
    return Installed(tmp_path_factory.mktemp("installed"))
