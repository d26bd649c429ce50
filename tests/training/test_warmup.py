"""A ladder of contexts on two real ranks: its grid, policy, micro batch and accumulation change at every boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import hyena_ds
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.stream import Sources, validation_samples
from tests.training.runs import make_shards, rows, train, write_config

LADDER = {
    "warmup": {
        "from": 16,
        "to": 64,
        "double_every": 2,
        "global_batch": 8,
        "tokens_per_rank": 32,
        "activation_policy": "leanest",
    },
    "stages": [{"context_length": 64, "tokens": 500, "global_batch": 4, "activation_policy": "fastest"}],
}
LADDERS_RUNGS = {"steps": 2, "global_batch": 8, "activation_policy": "leanest"}
WRITTEN_OUT = {
    "stages": [
        {"context_length": 16, "micro_batch_size": 4, **LADDERS_RUNGS},
        {"context_length": 32, "micro_batch_size": 2, **LADDERS_RUNGS},
        {"context_length": 64, "micro_batch_size": 2, **LADDERS_RUNGS, "sequence_parallel": 2},
        {"context_length": 64, "micro_batch_size": 1, "steps": 2, "global_batch": 4, "activation_policy": "fastest"},
    ]
}
VALIDATION = {"every_steps": 1, "windows": 5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ladder`, validated all the time; `written`, the same by hand, hardly validated; `alone`, the ladder on one rank."""
    directory = tmp_path_factory.mktemp("warmup")
    shards = make_shards(directory)

    def run(name: str, final_context: str, **changes: Any) -> None:
        validation = {**VALIDATION, "final_context": final_context}
        checkpoint = {"every_steps": 1000, "keep": 10}
        path = directory / f"{name}.yaml"
        result = train(write_config(path, shards, name=name, validation=validation, checkpoint=checkpoint, **changes))
        assert result.returncode == 0, result.stderr

    run("ladder", "always", **LADDER)
    run("written", "never", **WRITTEN_OUT)
    run("alone", "boundaries", **{**LADDER, "warmup": {**LADDER["warmup"], "tokens_per_rank": None}}, local_ranks=1)
    return directory / "runs"


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "loss" in row]


def validations_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "validation_loss" in row]


def test_a_ladder_trains_as_the_same_stages_written_out_bit_for_bit(runs: Path) -> None:
    assert [row["context_length"] for row in steps_of(runs / "ladder")] == [16, 16, 32, 32, 64, 64, 64, 64]
    assert steps_of(runs / "ladder") == steps_of(runs / "written")
    final = "checkpoints/step-00000008/weights.safetensors"
    ours, theirs = (load_file(runs / name / final) for name in ("ladder", "written"))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)
    log = (runs / "ladder" / "log.txt").read_text()
    for row in ("8 = 2 x 4 x 1  leanest", "8 = 2 x 2 x 2  leanest", "8 = 1 x 2 x 4  leanest", "4 = 2 x 1 x 2  fastest"):
        assert row in log


def test_every_rung_trains_as_on_one_rank(runs: Path) -> None:
    for ours, alone in zip(steps_of(runs / "ladder"), steps_of(runs / "alone"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)


def test_the_final_context_is_validated_when_the_config_says_and_never_twice(runs: Path) -> None:
    measured = {
        name: [(row["step"], row["context_length"]) for row in validations_of(runs / name)]
        for name in ("ladder", "written", "alone")
    }
    last = [(step, 64) for step in range(5, 9)]
    assert measured["written"] == [(1, 16), (2, 16), (3, 32), (4, 32), *last]
    assert measured["alone"] == [(1, 16), (2, 16), (2, 64), (3, 32), (4, 32), (4, 64), *last]
    both = [(step, length) for step, context in ((1, 16), (2, 16), (3, 32), (4, 32)) for length in (context, 64)]
    assert measured["ladder"] == both + last
    same = [row for row in validations_of(runs / "ladder") if row["step"] > 4 or row["context_length"] < 64]
    assert same == validations_of(runs / "written")


@pytest.mark.parametrize(("step", "context_length"), [(2, 16), (2, 64), (4, 32), (4, 64), (6, 64)])
def test_the_checkpoint_of_a_boundary_scores_what_was_validated_there(
    step: int, context_length: int, runs: Path
) -> None:
    """In one process, with the filter of the maximum context, which a rung uses the beginning of."""
    model = hyena_ds.load_model(runs / "ladder" / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    assert model.config.maximum_context == 64
    sources = Sources(load_yaml(runs / "ladder" / "config.yaml", RunConfig).data, "valid")
    total, scored = 0.0, 0
    for sample in validation_samples(sources, context_length, VALIDATION["windows"]):
        ids = torch.from_numpy(sources.tokens(sample, context_length, 0, context_length + 1).astype("int64"))
        targets = torch.where((ids[1:] == 11) | (ids[1:] == 6), -100, ids[1:])
        with torch.no_grad():
            total += float(F.cross_entropy(model(ids[None, :-1])[0], targets, reduction="sum"))
        scored += int((targets != -100).sum())
    (row,) = (
        row for row in validations_of(runs / "ladder") if (row["step"], row["context_length"]) == (step, context_length)
    )
    assert row["validation_loss"] == pytest.approx(total / scored, rel=1e-5)
