"""What is committed holds by today's model: predictions beside what was measured, and the study is what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import published_device
from hyena_ds.planning.accuracy import MEMORY_BOUND, TABLE, TIME_BOUND, row_of
from hyena_ds.planning.calibration import STEPS, calibration_case, fitted, read_calibration
from hyena_ds.planning.scaling import CONTEXTS, DEVICES, study, study_page
from tests.paths import ROOT

RESULTS = ROOT / "bench" / "results"
ROWS: list[dict[str, Any]] = json.loads((RESULTS / "plan.json").read_text(encoding="utf-8"))["rows"]


def test_no_row_was_calibrated_on() -> None:
    places = {(row["context_length"], row["sequence_parallel"]) for row in ROWS}
    assert places <= {(length, sp) for length, _, _ in TABLE for sp in (1, 2, 4)} and len(places) == len(ROWS)
    calibration = read_calibration(RESULTS / "calibration.json")
    used = {(step["context_length"], step["sequence_parallel"]) for step in calibration["steps"]}
    assert used == {(length, sp) for length, _ in STEPS for sp in (1, 2)}
    assert not places & used
    assert {row["calibration"] for row in ROWS} == {calibration["date"]}


def test_every_place_of_the_table_was_measured() -> None:
    assert {(row["context_length"], row["sequence_parallel"]) for row in ROWS} == {
        (length, sp) for length, _, _ in TABLE for sp in (1, 2, 4)
    }


@pytest.mark.parametrize(("what", "bound"), [("memory", MEMORY_BOUND), ("time", TIME_BOUND)])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["side"])
def test_todays_model_is_within_its_bounds_of_what_was_measured(row: dict[str, Any], what: str, bound: float) -> None:
    calibration = fitted(read_calibration(RESULTS / "calibration.json"))
    case = calibration_case(row["context_length"], row["sequence_parallel"], row["policy"])
    found = row_of(case, row, calibration)
    assert abs(found[f"{what}_error"]) <= bound, found


def test_the_study_is_what_the_command_prints() -> None:
    found = study(load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig), published_device("h200"))
    assert (ROOT / "bench" / "scaling.md").read_text(encoding="utf-8") == study_page(found)
    assert (ROOT / "bench" / "scaling.png").stat().st_size > 10_000
    assert set(found.strong) == set(found.weak) == set(DEVICES) and max(DEVICES) == 1024
    assert set(found.together) == set(CONTEXTS) and max(CONTEXTS) == 1 << 26
    assert all(one is not None and one.fits for one in (*found.alone.values(), *found.together.values()))
