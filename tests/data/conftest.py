from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.genomes import GENOME, write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of GENOME; tests that damage them copy them first."""
    return write_shards(tmp_path_factory.mktemp("genome"), GENOME)
