"""`hyena-ds bench predict`: values are compared before anything is timed, on one process and on two, and beside the published code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hyena_ds.bench.predict import check
from hyena_ds.bench.processes import WrongValue
from hyena_ds.cli import main

SMALL = ["--context-length", "64", "96", "--batch", "2", "1", "--width", "16", "--rounds", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_say_time_and_memory_above_the_loaded_model(tmp_path: Path, ranks: int) -> None:
    clone = os.environ.get("HYENA_REFERENCE")
    beside = [] if clone is None else ["--reference", clone]
    path = tmp_path / "rows.json"
    assert main(["bench", "predict", *SMALL, "--sequence-parallel", str(ranks), *beside, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    ours = [row for row in content["rows"] if row["side"].startswith("hyena-ds")]
    assert [(row["context_length"], row["batch"]) for row in ours] == [(64, 2), (96, 1)]
    assert len(content["rows"]) == (2 if clone is None else 6) and "cpu" in content["machine"]
    for row in content["rows"]:
        assert row["status"] == "measured" and row["cpu_seconds"]["median"] > 0
        assert 0 <= row["above_the_model_gib"] < row["peak_memory_gib"]
    assert all(("times_faster" in row) == (clone is not None) for row in ours)
    assert all(row["products_cpu_seconds"] > 0 for row in ours)


def test_values_that_differ_are_not_timed() -> None:
    values = np.array([[-1.0, -2.0]], dtype=np.float32)
    check("a side", values + 5e-5, values)
    with pytest.raises(WrongValue, match=r"a log-probability of a side differs by 2.0e-04, wanted at most 1e-04"):
        check("a side", values + 2e-4, values)
    with pytest.raises(WrongValue):
        check("a side", values * float("nan"), values)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--batch", "1"], "--batch: found 1 numbers, wanted 2, one for each --context-length"),
        (["--reference", "no-such-clone"], "found no standalone_hyenadna.py there, wanted a clone"),
        (["--sequence-parallel", "3"], "--context-length: found 64, wanted a multiple of 3 ranks"),
    ],
)
def test_a_wrong_option_is_one_sentence(option: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "predict", *SMALL, *option]) == 2
    assert said in capsys.readouterr().err
