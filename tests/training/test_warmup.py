"""A ladder of contexts on two real ranks: its grid, policy, micro batch and accumulation change at every boundary."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import hyena_ds
from hyena_ds.cli import main
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.policy import POLICIES
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.stream import Sources, validation_samples
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.passes import pass_of_stage
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
        checkpoint = {"every_steps": 1000, "keep_last": 10}
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_rung_trains_as_on_one_rank(runs: Path) -> None:
    for ours, alone in zip(steps_of(runs / "ladder"), steps_of(runs / "alone"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_stages_policy_is_that_of_its_passes(tmp_path: Path) -> None:
    config = load_yaml(write_config(tmp_path / "run.yaml", tmp_path, **LADDER), RunConfig)
    alone = Compute(torch.device("cpu"), "gloo", 0, 1, 0)
    plans = plan_stages(replace(config, warmup=replace(config.warmup, tokens_per_rank=None)), 1)
    passes = [pass_of_stage(plan, config, alone, {})[0] for plan in plans]
    assert [run.policy for run in passes] == [POLICIES[name] for name in ("leanest", "leanest", "leanest", "fastest")]
    assert [run.layout.context_length for run in passes] == [16, 32, 64, 64]


def copied(run: Path, to: Path, **changes: str) -> str:
    """The run's records in another place, with texts of its config.yaml replaced."""
    to.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        shutil.copy(run / name, to / name)
    config = to / "config.yaml"
    for key, value in changes.items():
        config.write_text(re.sub(rf"(?m)^( *){key}: .*$", rf"\g<1>{key}: {value}", config.read_text()))
    return str(to)


@pytest.mark.slow
def test_finished_runs_with_and_without_a_ladder_are_set_side_by_side(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder, written = runs / "ladder", runs / "written"
    second = [copied(ladder, tmp_path / "ladder", seed="7"), copied(written, tmp_path / "written", seed="7")]
    summary = Path(second[0]) / "summary.json"
    loss = json.loads(summary.read_text())["validation_loss"]
    summary.write_text(summary.read_text().replace(str(loss), str(loss + 0.25)))
    results = tmp_path / "results.json"
    assert main(["bench", "warmup", str(written), str(ladder), *second, "--json", str(results)]) == 0
    rows = json.loads(results.read_text())["rows"]
    sides = ["with warmup"] * 2 + ["without warmup"] * 2
    assert [(row["side"], row["seed"]) for row in rows[:4]] == list(zip(sides, (7, 2222, 7, 2222), strict=True))
    assert {(row["tokens"], row["context_length"], row["steps"]) for row in rows[:4]} == {(2304, 64, 8)}
    measured = [json.loads(line) for line in (ladder / "metrics.jsonl").read_text().splitlines()]
    batches = (128, 128, 256, 256, 512, 512, 256, 256)
    steps = [row for row in measured if "loss" in row]
    seconds = [b / row["tokens_per_second"] + row["input_wait_seconds"] for b, row in zip(batches, steps, strict=True)]
    assert rows[0]["training_seconds"] == pytest.approx(sum(seconds))
    assert rows[4]["validation_loss"]["mean"] == pytest.approx(loss + 0.125)
    assert rows[4]["validation_loss"]["standard_deviation"] == pytest.approx(0.25 / math.sqrt(2))
    assert rows[5]["validation_loss"] == {"mean": pytest.approx(loss), "standard_deviation": 0.0}
    table = capsys.readouterr().out
    assert f"{loss + 0.125:.4f} +- 0.1768" in table and f"{loss:.4f} +- 0.0000" in table


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder, written = str(runs / "ladder"), str(runs / "written")
    wider = copied(runs / "written", tmp_path / "wider", width="32")
    other_seed = copied(runs / "written", tmp_path / "seed", seed="7")
    unfinished = copied(runs / "written", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    for second, words in (
        (wider, "wanted the same in all; train them alike"),
        (other_seed, "runs: found seeds [2222] with warmup and [7] without warmup, wanted the same on both sides"),
        (ladder, "runs: found seeds [2222, 2222] with warmup and [] without warmup, wanted the same on both sides"),
        (unfinished, f"{unfinished}: found no summary.json, wanted the directory of a finished run"),
    ):
        assert main(["bench", "warmup", ladder, second]) == 2
        assert words in capsys.readouterr().err
    assert main(["bench", "warmup", ladder, written]) == 0
