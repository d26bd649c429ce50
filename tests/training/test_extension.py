"""A trained model goes on at a longer maximum context, in real processes: evaluated, trained, resumed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice, make_micro_batch
from hyena_ds.data.stream import Sources, validation_samples
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.weights.published import write_weights
from tests.training.runs import make_shards, rows, start_ranks, write_config

OLD, NEW, WINDOWS = 256, 1024, 4
MODEL = {"width": 16, "layers": 2, "filter_width": 16, "embedding_dropout": 0.0}
STILL = {"learning_rate": 1e-12, "minimum_learning_rate": 0.0, "warmup_learning_rate": 0.0, "warmup_fraction": 0.0}
"""Steps that leave the parameters where they were."""


def stage(context_length: int, steps: int, sequence_parallel: int = 1) -> dict[str, int]:
    batch = {"micro_batch_size": 1, "global_batch": 2, "sequence_parallel": sequence_parallel}
    return {"context_length": context_length, "steps": steps, **batch}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model that has learnt a repeat of 100 bases at the old maximum: its filter counts."""
    config = ModelConfig(**MODEL, maximum_context=OLD)  # type: ignore[arg-type]
    model = build_model(config, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    unit = torch.randint(7, 11, (4, 100), generator=torch.Generator().manual_seed(0))
    ids = unit.repeat(1, 3)[:, : OLD + 1]
    for _ in range(20):
        optimizer.zero_grad()
        NextToken(model).loss(ids[:, :-1], ids[:, 1:], ForwardPass(Layout.whole(OLD)))[0].div(ids.numel()).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "weights.safetensors"
    write_weights(path, config, dict(model.named_parameters()))
    return path


def extend(path: Path, shards: Path, weights: Path, by: str, stages: list[dict[str, int]], **changes: Any) -> Path:
    model = {**MODEL, "maximum_context": NEW, "extended_from": OLD, "extension": by}
    validation = {"every_steps": 1, "windows": WINDOWS}
    changes |= {"model": model, "optimizer": STILL, "validation": validation, "initialize_from": str(weights)}
    return write_config(path, shards, stages=stages, **changes)


def validation_losses(run: Path) -> list[float]:
    return [row["validation_loss"] for row in rows(run) if "validation_loss" in row]


def loss_in_this_process(model: HyenaDNA, config: Path, context_length: int) -> float:
    sources = Sources(load_yaml(config, RunConfig).data, "valid")
    total, count = 0.0, 0
    for sample in validation_samples(sources, context_length, WINDOWS):
        batch = make_micro_batch(sources, context_length, [0], [sample], Slice(0, 0, context_length))
        with torch.no_grad():
            call = ForwardPass(Layout.whole(context_length))
            loss, scored = NextToken(model).loss(batch.token_ids_Bl, batch.targets, call)
        total, count = total + float(loss), count + int(scored)
    return total / count


@pytest.mark.slow
def test_an_extrapolated_model_evaluates_as_before_at_the_old_context_trains_at_the_new_and_resumes(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    config = extend(tmp_path / "config.yaml", shards, trained, "extrapolate", [stage(OLD, 1), stage(NEW, 1)])
    assert start_ranks("hyena_ds", ["train", str(config)], 1) == [0]
    run = tmp_path / "runs" / "run"
    assert f"model: maximum context {NEW:,}, extended from {OLD} by extrapolate" in (run / "log.txt").read_text()
    whole = rows(run)
    assert all(math.isfinite(row["loss"]) for row in whole if "loss" in row)
    assert validation_losses(run)[0] == pytest.approx(loss_in_this_process(load_model(trained), config, OLD), abs=1e-6)
    model = load_model(run / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert (model.config.maximum_context, model.config.time_context) == (NEW, OLD)
    assert validation_losses(run)[-1] == pytest.approx(loss_in_this_process(model, config, NEW), abs=1e-6)
    # Its newest state is lost: it goes on from the step before, with the same losses.
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    assert start_ranks("hyena_ds", ["train", str(config)], 1) == [0]
    assert "resuming after step 1" in (run / "log.txt").read_text()
    assert rows(run) == whole


@pytest.mark.slow
def test_a_rescaled_model_trains_at_the_new_context_across_ranks_and_is_another_function(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    stages = [stage(OLD, 1), stage(NEW, 1, sequence_parallel=2)]
    config = extend(tmp_path / "config.yaml", shards, trained, "rescale", stages)
    assert start_ranks("hyena_ds", ["train", str(config)], 2) == [0, 0]
    run = tmp_path / "runs" / "run"
    assert all(math.isfinite(row["loss"]) for row in rows(run) if "loss" in row)
    before = loss_in_this_process(load_model(trained), config, OLD)
    assert abs(validation_losses(run)[0] - before) > 1e-4, "a stretched filter gives other losses"
    model = load_model(run / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert (model.config.maximum_context, model.config.time_context) == (NEW, NEW)
    for context_length, loss in zip((OLD, NEW, NEW), validation_losses(run), strict=True):
        assert loss == pytest.approx(loss_in_this_process(model, config, context_length), abs=1e-6)
