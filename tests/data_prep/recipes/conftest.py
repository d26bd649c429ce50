"""The fixture of the tests of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_prep.recipes.making import Recipes


@pytest.fixture
def recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Recipes:
    return Recipes(tmp_path, capsys)
