"""The `hosts_of` fixture: hosts in namespaces of their own. Where they cannot be, their tests are skipped; in CI they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, why_not
from tests.cluster.launches import Reference, reference


@pytest.fixture(scope="session")
def hosts_are_possible() -> None:
    why = why_not()
    if why is None:
        return
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI may not skip tests of clusters: {why}", pytrace=False)
    pytest.skip(why)


@pytest.fixture
def hosts_of(hosts_are_possible: None, tmp_path: Path) -> Iterator[Callable[[int], Hosts]]:
    """`hosts_of(count)` starts hosts that live as long as the test."""
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(Hosts(count, tmp_path / "hosts"))


@pytest.fixture(scope="session")
def single(hosts_are_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Shards, and the losses that one process has on them."""
    return reference(tmp_path_factory.mktemp("single"))
