"""`hyena-ds bench shards`, at sizes of a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyena_ds.cli import main

SMALL = ["--genomes", "2", "--shards", "4", "--chunks", "2", "--ranks", "8"]


def test_a_row_for_each_context_and_number_of_shards_says_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    axes = ["--context-length", "1024", "4096", "--shuffle-shards", "3", "1"]
    assert main(["bench", "shards", *SMALL, *axes, "--json", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    assert [(row["context_length"], row["shuffle_shards"]) for row in rows] == [
        (1024, 3),
        (1024, 1),
        (4096, 3),
        (4096, 1),
    ]
    windows = {
        1024: 2 * 3 * 2 * 1024,
        4096: 2 * 3 * 2 * 256,
    }  # of two genomes three shards of two chunks are trained on
    for row in rows:
        length, together = row["context_length"], row["shuffle_shards"]
        # The last window of a genome has no base after it, those in an N run nothing to score.
        assert windows[length] - 150 < row["windows"] < windows[length]
        assert row["steps_an_epoch"] == row["windows"] // 8
        assert row["order_mib"] * 2**18 == pytest.approx(row["windows"] * together / 3, rel=0.05)
        assert row["cache_gib"] == pytest.approx(rows[0]["cache_gib"] * together / 3)
        assert 0.9 * 8 * length < row["scored"] <= 8 * length
        assert row["first_step_seconds"] > 0 and row["status"] == "measured" and row["shards"] == 8
    assert len({row["digest"] for row in rows}) == 1
    printed = capsys.readouterr().out
    assert "2 genomes, 8 shards, 8 ranks, a sequence for each; CPU seconds" in printed
    assert "1,024, 3 together" in printed and "4,096, 1 together" in printed


@pytest.mark.parametrize("option", ["--genomes", "--shards", "--chunks", "--ranks"])
def test_none_of_something_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "shards", *SMALL, option, "0"]) != 0
    assert f"{option}: found 0, wanted at least 1" in capsys.readouterr().err
