"""A run goes on at another grid and ZeRO stage with the same bases and losses; `make soak-full` tries every pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.grids import Grids, Place, spanning


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grids]:
    grids = Grids(tmp_path_factory.mktemp("grids"))
    yield grids
    grids.close()


@pytest.mark.parametrize(("source", "target"), spanning(), ids=str)
def test_resumed_elsewhere_ten_losses_and_the_bases_are_those_of_the_uninterrupted_run(
    grids: Grids, source: Place, target: Place
) -> None:
    grids.resume(source, target)
