"""`hyena-ds bench watch`, at sizes of a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyena_ds.cli import main


@pytest.mark.slow
def test_a_step_that_is_looked_at_is_set_beside_one_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    shape = ["--context-length", "64", "--width", "16", "--layers", "1"]
    assert main(["bench", "watch", *shape, "--rounds", "1", "--json", str(results)]) == 0
    off, noted, compared = json.loads(results.read_text())["rows"]
    assert off["cpu_seconds_ratio"] == off["wall_seconds_ratio"] == 1.0
    for row in (noted, compared):
        assert row["cpu_seconds_ratio"] == row["cpu_seconds"]["median"] / off["cpu_seconds"]["median"] > 0
    assert "by default one step in 50 compares" in capsys.readouterr().out
