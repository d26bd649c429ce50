"""The names of the curves, and the clock of a step."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from hyena_ds.config.monitors import MonitorsConfig, WandbConfig
from hyena_ds.errors import UserError
from hyena_ds.monitoring.monitors import _drop_after, check_monitors
from hyena_ds.monitoring.scalars import of_step, of_validation
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.clock import StepClock


def test_a_step_is_named_by_group_and_its_quality_by_stage_too_and_what_is_null_is_left_out() -> None:
    row = {"step": 7, "stage": 2, "context_length": 512, "loss": 1.5, "perplexity": 4.5, "bits_per_base": 2.2}
    row |= {"learning_rate": 1e-3, "tokens_per_second": 10.0, "exchange_share": None, "skipped": True}
    assert dict(of_step(row, ("loss", "perplexity", "bits_per_base"))) == {
        "train/loss": 1.5,
        "train/perplexity": 4.5,
        "train/bits_per_base": 2.2,
        "train/learning_rate": 1e-3,
        "train/skipped": 1.0,
        "speed/tokens_per_second": 10.0,
        "schedule/stage": 2.0,
        "schedule/context_length": 512.0,
        "by_stage/2_context_512/loss": 1.5,
        "by_stage/2_context_512/perplexity": 4.5,
        "by_stage/2_context_512/bits_per_base": 2.2,
    }


@pytest.mark.parametrize(("at_final", "group"), [(False, "validation"), (True, "validation_final_context")])
def test_a_validation_is_named_by_what_was_scored_and_by_context(at_final: bool, group: str) -> None:
    row = {"step": 7, "stage": 2, "context_length": 512, "validation_loss": 1.5, "validation_perplexity": None}
    assert of_validation(row, at_final) == [(f"{group}/loss", 1.5), ("validation_by_context/512/loss", 1.5)]


def test_files_of_curves_lose_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    curve = tmp_path / "train_loss.csv"
    curve.write_text("step,loss\r\n1,1.5\r\n2,1.25\r\n3,1.0\r\n4,0.")
    (tmp_path / "empty.csv").write_text("")
    assert _drop_after(tmp_path, 2) == ["train_loss"]
    assert curve.read_text().split() == ["step,loss", "1,1.5", "2,1.25"]


def test_weights_and_biases_without_its_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed, also where it is
    check_monitors(MonitorsConfig(csv=True))
    with pytest.raises(UserError) as raised:
        check_monitors(MonitorsConfig(wandb=WandbConfig("genomes")))
    assert str(raised.value).startswith("monitors.wandb: cannot import the package wandb (")
    assert str(raised.value).endswith("; pip install wandb, or leave monitors.wandb out")


def test_where_waits_are_queued_on_a_device_no_exchange_share_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyena_ds.training.clock.timed_event", Mock)
    alone = Compute(torch.device("meta"), "none", 0, 1, 0)
    clock = StepClock(alone)
    clock.begin()
    assert math.isnan(clock.exchange_share())
