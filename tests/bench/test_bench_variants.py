"""Both sides of `bench variants` give one value, and a wrong one is not timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyena_ds.bench.processes import WrongValue
from hyena_ds.bench.variants import check
from tests.predict.verbs import run


def test_a_further_alt_is_set_beside_its_sequence_computed_again(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ("--left", 3000, "--right", 64, "--width", 16, "--rounds", 1, "--json", results)
    assert run("bench", "variants", *words) == 0
    again, further = json.loads(results.read_text())["rows"]
    assert again["times_cheaper"] == 1.0 and again["status"] == further["status"] == "measured"
    ratio = again["wall_seconds"]["median"] / further["wall_seconds"]["median"]
    assert further["times_cheaper"] == pytest.approx(ratio)


def test_a_value_that_is_off_is_not_timed() -> None:
    check(torch.tensor(-100.0), torch.tensor(-100.0005))
    with pytest.raises(
        WrongValue, match=r"log-likelihood of an ALT is off by 2\.0e-05 of itself, wanted at most 1e-05"
    ):
        check(torch.tensor(-100.0), torch.tensor(-100.002))
