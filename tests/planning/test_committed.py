"""What is committed holds: the table is complete and within its bounds by today's model, the study is what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hyena_ds.bench.plan import GRIDS, MEMORY_BOUND, TABLE, TIME_BOUND, row_of
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.planning.calibration import STEPS, calibration_case, fitted, read_calibration
from hyena_ds.planning.devices import published_device
from hyena_ds.planning.scaling import CONTEXTS, DEVICES, study, study_lines
from tests.paths import ROOT

RESULTS = ROOT / "bench" / "results"


def rows() -> list[dict[str, Any]]:
    found = json.loads((RESULTS / "plan.json").read_text(encoding="utf-8"))["rows"]
    assert found
    return found


def test_the_table_has_every_context_and_grid_and_none_that_was_calibrated_on() -> None:
    places = {(row["context_length"], row["sequence_parallel"]) for row in rows()}
    assert places == {(length, sp) for length, _, _ in TABLE for sp in GRIDS}
    calibration = read_calibration(RESULTS / "calibration.json")
    used = {(step["context_length"], step["sequence_parallel"]) for step in calibration["steps"]}
    assert used == {(length, sp) for length, _ in STEPS for sp in (1, 2)}
    assert not places & used
    assert {row["calibration"] for row in rows()} == {calibration["date"]}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["side"])
def test_todays_model_is_within_its_bounds_of_what_was_measured(row: dict[str, Any]) -> None:
    calibration = fitted(read_calibration(RESULTS / "calibration.json"))
    case = calibration_case(row["context_length"], row["sequence_parallel"], row["policy"])
    found = row_of(case, row, calibration)
    assert abs(found["memory_error"]) <= MEMORY_BOUND, found
    assert abs(found["time_error"]) <= TIME_BOUND, found


def test_the_study_is_what_the_command_prints() -> None:
    config = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig)
    found = study(config, published_device("h200"))
    assert (ROOT / "bench" / "scaling.md").read_text(encoding="utf-8") == "\n".join(study_lines(found)) + "\n"
    assert (ROOT / "bench" / "scaling.png").stat().st_size > 10_000
    assert set(found.strong) == set(found.weak) == set(DEVICES) and max(DEVICES) == 1024
    assert set(found.together) == set(CONTEXTS) and max(CONTEXTS) == 1 << 26
    assert all(one is not None and one.fits for one in (*found.alone.values(), *found.together.values()))
