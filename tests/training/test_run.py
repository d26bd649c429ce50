"""What a run leaves behind, and what must not change it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import webdataset as wds
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hyena_ds
from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.stream import Sources, validation_samples
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.clock import StepClock
from hyena_ds.training.run import _Run
from tests.model.golden import weights_path
from tests.training.runs import make_shards, rows, train, write_config

STEP_FIELDS = [
    "step",
    "stage",
    "context_length",
    "loss",
    "perplexity",
    "bits_per_base",
    "learning_rate",
    "gradient_norm",
    "tokens",
    "tokens_per_second",
    "peak_memory_gib",
    "exchange_share",
    "input_wait_seconds",
    "mfu",
    "limit_share",
]


GROUPS = {"train", "by_stage", "speed", "memory", "schedule"}
GROUPS |= {"validation", "validation_final_context", "validation_by_context"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
def test_a_run_leaves_config_metrics_events_log_checkpoints_and_a_summary(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    result = train(config)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "run"
    assert load_yaml(run / "config.yaml", RunConfig) == load_yaml(config, RunConfig)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert all(list(line) == STEP_FIELDS for line in steps)
    assert steps[-1]["tokens"] == 4 * 6 * 32 + 6 * 4 * 64
    assert steps[0]["perplexity"] == math.exp(steps[0]["loss"])
    assert steps[0]["bits_per_base"] == pytest.approx(math.log2(steps[0]["perplexity"]))
    # Only the second stage cuts its sequences.
    assert all(line["exchange_share"] == 0.0 for line in steps[:4])
    assert all(0.0 < line["exchange_share"] < 1.0 for line in steps[4:])
    assert all(line["input_wait_seconds"] > 0.0 for line in steps)
    validations = [(line["step"], line["context_length"]) for line in lines if "validation_loss" in line]
    assert validations == [(3, 32), (4, 32), (4, 64), (6, 64), (9, 64), (10, 64)]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("by_stage/1_context_64/bits_per_base")] == list(range(5, 11))
    assert [event.step for event in events.Scalars("validation_by_context/64/perplexity")] == [4, 6, 9, 10]
    assert {name.partition("/")[0] for name in events.Tags()["scalars"]} == GROUPS
    log = (run / "log.txt").read_text()
    assert "dp 1 x sp 2  4 = 1 x 1 x 4" in log and "not reset between stages" in log
    assert log.count("convolution: fft (no CUDA device)") == log.count("kernels: portable (no CUDA device)") == 1
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == [f"step-{n:08d}" for n in (6, 9, 10)]
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["markov_losses"]) == {"0", "2", "5"}
    assert "DeepSpeed" not in result.stdout
    # The validation loss of the grid is that of the written weights in one process.
    model = hyena_ds.load_model(run / "checkpoints" / "step-00000010" / "weights.safetensors")
    sources = Sources(load_yaml(config, RunConfig).data, "valid")
    total, scored = 0.0, 0
    for sample in validation_samples(sources, 64, 5):
        ids = torch.from_numpy(sources.tokens(sample, 64, 0, 65).astype("int64"))
        targets = torch.where((ids[1:] == 11) | (ids[1:] == 6), -100, ids[1:])
        with torch.no_grad():
            total += float(F.cross_entropy(model(ids[None, :-1])[0], targets, reduction="sum"))
        scored += int((targets != -100).sum())
    assert summary["validation_loss"] == pytest.approx(total / scored, rel=1e-5)


@pytest.mark.slow
def test_validating_every_step_leaves_the_training_losses_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    assert train(config, "name=often", "validation.every_steps=1", "validation.final_context=always").returncode == 0
    assert train(config, "name=seldom", "validation.every_steps=1000", "validation.final_context=never").returncode == 0
    often, seldom = ([r for r in rows(tmp_path / "runs" / name) if "loss" in r] for name in ("often", "seldom"))
    assert often == seldom


@pytest.mark.slow
def test_a_new_run_starts_from_published_weights_with_a_fresh_optimizer(shards: Path, tmp_path: Path) -> None:
    model = {"width": 32, "layers": 2, "inner_width": 128, "maximum_context": 130}
    optimizer = {"learning_rate": 1e-12, "minimum_learning_rate": 0.0, "warmup_learning_rate": 0.0}
    config = write_config(
        tmp_path / "config.yaml",
        shards,
        local_ranks=1,
        model=model,
        optimizer=optimizer,
        stages=[{"context_length": 64, "steps": 1, "global_batch": 1, "micro_batch_size": 1}],
        initialize_from=weights_path("d32_l2"),
    )
    result = train(config)
    assert result.returncode == 0, result.stderr
    ours = load_file(tmp_path / "runs" / "run" / "checkpoints" / "step-00000001" / "weights.safetensors")
    published = load_file(weights_path("d32_l2"))
    for key, tensor in ours.items():
        assert torch.allclose(tensor, published[key], rtol=0, atol=1e-9), key
    refused = train(config, "name=other", "model.width=16")
    assert refused.returncode == 2
    assert "the weights have width 32, the config wants 16" in refused.stderr


def test_any_webdataset_reader_opens_the_shards(shards: Path) -> None:
    samples = list(wds.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False))
    assert samples and all({"tokens", "json"} <= set(sample) for sample in samples)


def test_memory_of_a_stage_goes_back_before_the_next_one_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("hyena_ds.training.run.give_back", lambda: done.append("give back"))
    stages = _Run.__new__(_Run)
    stages.state, stages.clock = RunState(0, 0, 0), StepClock(Compute(torch.device("cpu"), "none", 0, 1, 0))
    stages._pass_of_stage = lambda plan: (None, None)  # type: ignore[method-assign, assignment, return-value]
    stages.task = SimpleNamespace(steps=lambda *_: iter(done.append("read") or ()))  # type: ignore[assignment, func-returns-value]
    for _ in range(2):
        assert stages._stage(None) is None  # type: ignore[arg-type]
    assert done == ["give back", "read"] * 2
