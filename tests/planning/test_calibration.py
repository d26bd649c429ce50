"""Constants are found again in what they would have measured, and stand for as many ranks as were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB, Cluster
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.step_time import step_time
from hyena_ds.errors import UserError
from hyena_ds.planning.calibration import (
    calibration_case,
    fitted,
    machine_device,
    measure_step,
    read_calibration,
    row_of_step,
    with_steps,
    write_calibration,
)
from hyena_ds.planning.forecast import predict
from tests.planning.machines import FITS, calibration, steps_of


def test_a_fit_finds_the_constants_behind_the_steps() -> None:
    known = calibration()
    found = fitted({**known, "steps": steps_of(known, machine_device)})["fits"]
    for fit, wanted in zip(found, FITS, strict=True):
        assert fit["ranks"] == wanted.ranks
        assert fit["pointwise"] == pytest.approx(wanted.pointwise, rel=1e-3)
        assert fit["step"] == pytest.approx(wanted.step, rel=1e-3)
        assert fit["process_gib"] == pytest.approx(wanted.process_gib, rel=0.01)
        assert fit["slack"] == pytest.approx(wanted.slack, rel=0.02)


def test_constants_are_never_negative() -> None:
    known = calibration()
    steps = steps_of(known, machine_device)
    for step in steps:
        step["wall_seconds"] = {"median": 1e-3}
        step["peak_memory_gib"] = 0.01
    for fit in fitted({**known, "steps": steps})["fits"]:
        assert fit["pointwise"] > 0 and min(fit["step"], fit["process_gib"], fit["slack"]) >= 0


def test_four_ranks_on_two_cores_take_turns() -> None:
    two, four = (machine_device(calibration(), ranks) for ranks in (2, 4))
    assert four.rates.gemm_float32 == two.rates.gemm_float32 / 2
    assert four.rates.pointwise == two.rates.pointwise / 2
    assert four.rates.links.inside == 4e8  # measured between four
    assert four.rates.links.latency_inside == 2 * two.rates.links.latency_inside  # and not what four wait for a core
    assert four.memory == 24 * GIB / 4
    shape = StepShape(ModelConfig(width=128, layers=2, maximum_context=65536), 65536)
    halves = step_time(shape.on(2, 1, "balanced", 2) or shape, Cluster(1, 2, two))
    quarters = step_time(shape.on(4, 1, "balanced", 4) or shape, Cluster(1, 4, four))
    for part in ("FFT", "GEMM"):
        assert quarters.parts[part] == pytest.approx(halves.parts[part])


def test_a_calibration_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "calibration.json"
    write_calibration(path, calibration())
    assert read_calibration(path) == calibration()


def test_a_mistake_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"found no calibration at .*none\.json; measure this machine first, with --calib"
    ):
        read_calibration(tmp_path / "none.json")
    for text in ("{", "[]", json.dumps({**calibration(), "format": 0})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=r"bad\.json: not a calibration of this version"):
            read_calibration(tmp_path / "bad.json")
    with pytest.raises(UserError, match="found ceilings of 1, 2, 4 ranks, wanted those of 8; run hyena-ds plan"):
        machine_device(calibration(), 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a file that can be written"):
        write_calibration(tmp_path / "file" / "c.json", calibration())


def test_steps_of_a_run_are_added_and_take_the_place_of_older_ones_of_their_shape() -> None:
    known = calibration()
    known = {**known, "steps": steps_of(known, machine_device)}
    model = ModelConfig(width=64, layers=3, maximum_context=8192, inner_width=96)
    shape = StepShape(model, 4096, 2, 3, 2, 1, "lean", "bfloat16", 2, "bfloat16")
    seconds = predict(shape, Cluster(1, 2, machine_device(known, 2))).time.seconds
    row = row_of_step(shape, {"median": seconds, "min": seconds, "max": seconds}, 0.5)
    row = json.loads(json.dumps(row))
    after, replaced = with_steps(known, [row])
    assert replaced == 0 and after["steps"] == [*known["steps"], row]
    for fit, wanted in zip(after["fits"], FITS, strict=True):  # a step that was predicted says nothing new
        assert (fit["ranks"], fit["pointwise"]) == (wanted.ranks, pytest.approx(wanted.pointwise, rel=1e-3))
    slower = {**row, "wall_seconds": {"median": 3 * seconds}}
    again, replaced = with_steps(after, [slower])
    assert replaced == 1 and again["steps"] == [*known["steps"], slower]
    assert again["fits"][1]["pointwise"] < after["fits"][1]["pointwise"] and again["fits"][0] == after["fits"][0]
    with pytest.raises(UserError, match="found steps that are not those of this version; measure again, with --calib"):
        with_steps({**known, "steps": [{"context_length": 5}]}, [row])


@pytest.mark.slow
def test_the_trainers_step_is_measured_in_processes_of_its_own() -> None:
    case = calibration_case(256, 2, "balanced", width=16, layers=1)
    measured = measure_step(case, 2)
    assert 0 < measured["wall_seconds"]["min"] <= measured["wall_seconds"]["median"]
    assert 0.1 < measured["peak_memory_gib"] < 2
    assert measured["machine"]["cores"] >= 1
