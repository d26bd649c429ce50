"""Two checkpoints of one tiny run, written by two ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import cases
from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def written(ranks: Callable[[int], Pool], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of checkpoints of steps 1 and 2. Tests that damage them copy it first."""
    directory = tmp_path_factory.mktemp("written")
    ranks(2).run(cases.save, directory=directory, zero_stage=1, steps=[1, 2])
    return directory
