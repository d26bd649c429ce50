"""`hyena-ds tune`: the grids it chooses, the sweep it writes, what it makes of the numbers, and one real measurement."""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import describe, plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import GIB, Cluster, Device, published_device
from hyena_ds.errors import UserError
from hyena_ds.planning.calibration import machine_device, read_calibration, write_calibration
from hyena_ds.planning.forecast import predict
from hyena_ds.sweeps.grids import Stage, candidates, settings_of, stage_of, write_sweep
from hyena_ds.sweeps.measured import (
    add_to_calibration,
    as_good_as,
    best_of,
    errors_of,
    measured_of,
    said_of_best,
    table,
)
from hyena_ds.sweeps.plan import Sweep, load_sweep
from tests.paths import ROOT
from tests.planning.machines import calibration
from tests.training.runs import make_shards, write_config

HERE = {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "torch": "2"}
"""The machine of tests/planning/machines.py."""
TIMEOUT = 900
"""Seconds of a measurement with two starts of two ranks, on a machine that does other work."""


def stage_on(path: Path, ranks: int, number: int | None = None, overrides: list[str] | None = None) -> Stage:
    given = overrides or []
    return stage_of(str(path), given, load_yaml(path, RunConfig, given), ranks, number)


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    """The last stage has the longest context: 4 sequences of 64 tokens, cut over two ranks."""
    return write_config(tmp_path / "run.yaml", tmp_path / "shards")


def cluster(ranks: int, gib: float = 1e6, nodes: int = 1) -> Cluster:
    return Cluster(nodes, ranks // nodes, replace(published_device("h200"), memory=gib * GIB))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("number", [None, 0])
def test_rows_are_all_grids_that_divide_and_each_keeps_the_batch(config: Path, ranks: int, number: int | None) -> None:
    stage = stage_on(config, ranks, number, ["stages.0.global_batch=8"])
    length, sequences = (64, 4) if number is None else (32, 8)
    sweep = write_sweep(stage, candidates(stage, cluster(ranks), 1000), 7, 1000)
    found = set()
    for run in sweep.runs:
        (plan,) = plan_stages(run.config, ranks)
        row = plan.config
        assert (row.context_length, row.sequences, row.step_count) == (length, sequences, 7)
        assert plan.data_parallel * row.sequence_parallel == ranks
        assert plan.data_parallel * plan.micro_batch_size * plan.accumulation == sequences
        assert "validation: none (steps_only)" in describe(run.config, ranks)
        assert run.config.steps_only and run.config.local_ranks == ranks and run.config.warmup is None
        found.add((row.sequence_parallel, plan.micro_batch_size, plan.activation_policy))
    wanted = {
        (sp, micro, policy)
        for sp in (1, 2, 4)
        for micro in range(1, sequences + 1)
        for policy in KEPT_UNITS
        if ranks % sp == 0 and sequences % (ranks // sp) == 0 and sequences // (ranks // sp) % micro == 0
    }
    assert found == wanted and len(sweep.runs) == len(wanted)
    own = stage.plan
    (first,) = plan_stages(sweep.runs[0].config, ranks)
    assert (first.config.sequence_parallel, first.micro_batch_size, first.activation_policy) == (
        own.config.sequence_parallel,
        own.micro_batch_size,
        own.activation_policy,
    )


def test_the_most_promising_rows_fit_and_differ_and_the_own_grid_is_there_whatever_is_said_of_it(config: Path) -> None:
    stage = stage_on(
        config, 2, None, ["stages.1.context_length=65536", "model.maximum_context=65536", "model.width=128"]
    )
    every = candidates(stage, cluster(2), 1000)
    assert candidates(stage, cluster(2), 1) == every[:1]
    few = candidates(stage, cluster(2), 4)
    assert len(few) == 4 and few[0].shape == stage.shape(False)
    fastest = min(found.time.seconds for found in every)
    assert min(found.time.seconds for found in few) <= 1.03 * fastest
    assert len({(found.shape.sequence_parallel, found.shape.policy) for found in few}) > 2
    sizes = sorted(found.memory.total for found in every)
    small = cluster(2, sizes[len(sizes) // 2] / GIB)
    fitting = candidates(stage, small, 1000)
    assert 1 < len(fitting) < len(every) and all(found.fits for found in fitting[1:])
    assert candidates(stage, cluster(2, sizes[0] / GIB / 2), 8)[0].shape == stage.shape(False)


def test_a_sweep_goes_on_with_its_rows_and_more_of_them_and_no_other_settings(config: Path) -> None:
    stage = stage_on(config, 2, None, ["precision=bfloat16", "stages.1.activation_policy=lean", "name=mine"])
    assert stage.directory == config.parent / "runs" / "mine-tune"
    assert stage_on(config, 2, 0).directory.name == "run-tune-0"
    every = candidates(stage, cluster(2), 1000)
    before = write_sweep(stage, every[:3], 5, 3)
    assert before.runs[0].config.precision == "bfloat16" and before.runs[0].name == "sp2-micro1-lean"
    assert load_sweep(str(stage.sweep_file), []).runs == before.runs  # what `hyena-ds sweep` would run
    after = write_sweep(stage, [every[0], *every[4:7]], 5, 5)
    assert after.config.rows[:3] == before.config.rows and len(after.runs) == 5
    assert write_sweep(stage, every[:2], 5, 2).config == after.config
    with pytest.raises(
        UserError, match=r"sweep\.yaml: found a sweep with other settings than these; give the same, remove"
    ):
        write_sweep(stage, every[:3], 6, 3)
    run = after.runs[1]
    run.directory.mkdir(parents=True)
    (run.directory / "config.yaml").write_text("{name: other, zero_stage: 3}")
    with pytest.raises(UserError, match=r"micro\d-\w+: (holds another run|was measured with other settings)"):
        write_sweep(stage, every[:3], 5, 3)


def test_what_to_paste_is_of_the_stage_or_a_row_in_the_place_of_a_rung(config: Path) -> None:
    stage = stage_on(config, 2, 0)
    wanted = "stages.0.sequence_parallel=1 stages.0.micro_batch_size=1 stages.0.activation_policy=balanced"
    assert settings_of(stage, stage.shape(True)) == wanted
    assert plan_stages(load_yaml(config, RunConfig, wanted.split()), 2)[0].micro_batch_size == 1
    warmup = {"from": 32, "to": 64, "double_every": 2, "global_batch": 4}
    write_config(config, config.parent, warmup=warmup, stages=[], monitors={"csv": True})
    stage = stage_on(config, 2)
    said = settings_of(stage, stage.shape(True))
    assert said.startswith(
        "a warmup chooses the grids of its rungs; in its place, rows of stages, of which this one has {"
    )
    (run,) = write_sweep(stage, candidates(stage, cluster(2), 1), 3, 1).runs
    assert [row.context_length for row in run.config.schedule] == [64] and not run.config.monitors.csv


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stage", "2"], "--stage: found 2, wanted 0 to 1, a stage of"),
        (["--ranks", "3"], "sequence_parallel: found 2 with 3 ranks, wanted a divisor of the number of ranks"),
        (["--steps", "0"], "--steps: found 0, wanted 1 to 10,000"),
        (["--most", "0"], "--most: found 0, wanted 1 to 1,000"),
        (["--ranks", "5000"], "--ranks: found 5,000, wanted at most 1,024 on one machine; add --slurm"),
        (["--nodes", "2"], "--nodes: found 2 without --slurm, wanted 1: runs start on this machine; add --slurm"),
        (
            ["--slurm"],
            "--slurm: found no --ranks, wanted the ranks of a job, for which grids are made; add it, and --nodes",
        ),
        (["--slurm", "--ranks", "4", "--nodes", "3"], "--ranks: found 4, wanted a multiple of --nodes 3"),
        (["--slurm", "--ranks", "4", "--device", "this"], "--device: found this with --slurm, wanted the jobs' device"),
        (["--slurm", "--ranks", "4", "--calibrate"], "--calibrate: found it with --slurm, wanted one of them"),
        (["--device", "abacus"], "--device: found 'abacus', wanted b200, h200, h100"),
        (
            ["--device", "this"],
            "--device this: found no calibration of this machine; measure it first, with --calibrate",
        ),
        (["--calibration", "none.json"], "found no calibration at none.json; measure this machine first"),
        (["--table"], "sweep.yaml: found none, wanted the sweep of an earlier hyena-ds tune; leave out --table"),
        (
            ["resume=elsewhere"],
            "resume: found 'elsewhere', wanted none: every grid is a run of its own, from its first",
        ),
        (
            ["data.sources.0.shards=https://me:secret@host/x"],
            "found a secret (user info, query or command), wanted ${NAME} in its place, a variable of the environment",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(
    config: Path,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(config.parent))
    assert main(["tune", str(config), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and ":secret" not in said
    assert not (config.parent / "runs").exists()


def test_a_task_is_refused_by_the_command_and_with_steps_only(config: Path) -> None:
    whole = {**json.loads(config.read_text()), "data": {}, "task": {"kind": "classification", "train": "train.tsv"}}
    config.write_text(json.dumps(whole))
    with pytest.raises(
        UserError, match=r"run\.yaml: task: found one, wanted a run on data\.sources: tune measures steps"
    ):
        stage_on(config, 2)
    config.write_text(json.dumps({**whole, "steps_only": True}))
    with pytest.raises(UserError, match=r"steps_only: found it with a task, wanted data\.sources; leave it out"):
        load_yaml(config, RunConfig)


Measure = Callable[[list[list[float] | str]], Sweep]


@pytest.fixture()
def measure(config: Path) -> Measure:
    """Runs as they would have left it: seconds of the steps of each, or how it failed."""

    def write(results: list[list[float] | str]) -> Sweep:
        stage = stage_on(config, 2)
        sweep = write_sweep(stage, candidates(stage, cluster(2), len(results)), 6, len(results))
        for run, result in zip(sweep.runs, results, strict=True):
            run.directory.mkdir(parents=True)
            start = {"device": "CPU", "ranks": 2, "threads": 1, "hosts": {platform.node(): 2}}
            (run.directory / "environment.jsonl").write_text(json.dumps(start) + "\n")
            if isinstance(result, str):
                outcome = {"exit_code": 70, "error": result, "seconds": 3.0}
                run.directory.with_name(f"{run.name}.outcome.json").write_text(json.dumps(outcome))
                continue
            rows = [
                {"step": 1 + at, "loss": 1.0, "tokens": 256 * (1 + at), "tokens_per_second": 256 / seconds}
                | {"peak_memory_gib": 0.5 + run.number / 8, "input_wait_seconds": 0.25}
                for at, seconds in enumerate(result)
            ]
            rows.append({"step": 9, "loss": None, "skipped": True, "tokens": 0, "tokens_per_second": 1e9})
            (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (run.directory / "summary.json").write_text("{}")
        return sweep

    return write


def test_the_first_steps_do_not_count_the_best_is_named_with_its_equals_and_a_failure_has_its_sentence(
    measure: Measure,
) -> None:
    sweep = measure(
        [
            [9.0, 9.0, 3.0, 3.0, 3.0, 3.0],
            [9.0, 9.0, 2.0, 1.5, 2.5, 2.0],
            "CUDA out of memory",
            [9.0, 9.0, 2.1, 2.4, 2.6, 2.8],
        ]
    )
    rows = measured_of(sweep, 2, published_device("h200"))
    spreads = [row.spread for row in rows if row.is_complete]
    assert spreads[:2] == [(3.0, 3.0, 3.0), (2.0, 1.875, 2.125)] and spreads[2] == pytest.approx((2.5, 2.325, 2.65))
    best = best_of(rows)
    assert best is rows[1] and as_good_as(best, rows) == []
    assert as_good_as(replace(best, seconds=(2.0, 2.4, 2.4, 2.4)), rows) == [rows[1], rows[3]]
    assert rows[1].prediction == predict(rows[1].shape, Cluster(1, 2, published_device("h200")))
    lines = table(rows, rows[0].shape)
    assert lines[1].startswith("best ") and lines[3].startswith("yours") and "1.88 to 2.12" in lines[1]
    assert "failed (70)" in lines[4] and lines[5] == f"{rows[2].run.name}: CUDA out of memory"
    said = said_of_best(rows, rows[0].shape)
    assert said[0].endswith("2 s a step, 67% of the time of yours") and "see data.workers" in said[-1]
    assert "yours is among the best: there is nothing to change" in said_of_best(rows, rows[1].shape)
    assert best_of([rows[2]]) is None and said_of_best([rows[2]], rows[0].shape) == []


def test_plan_learns_from_the_steps_and_is_no_further_off_than_before(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyena_ds.bench.measure.machine", lambda: HERE)
    known, path = calibration(), tmp_path / "calibration.json"
    sweep = measure([[0.3] * 6, [0.2] * 6, [0.25] * 6])
    rows = measured_of(sweep, 2, machine_device(known, 2))
    said = add_to_calibration(path, known, rows)
    after = read_calibration(path)
    assert "3 measured steps added; error of what plan predicts" in said[0] and said[1] == f"written: {path}"
    assert len(after["steps"]) == 3 and {fit["ranks"] for fit in after["fits"]} == {2}
    before, now = errors_of(known, rows), errors_of(after, rows)
    assert now[0] < before[0] and now[1] <= before[1]
    assert now[0] < 25 and now[1] < 25  # of numbers that no machine gave
    # The same grids again take the place of the older ones.
    said = add_to_calibration(path, after, rows)
    assert "3 measured steps added, 3 of which replace older ones" in said[0]
    assert read_calibration(path) == after


@pytest.mark.parametrize(
    ("machine", "start", "ranks", "sentence"),
    [
        ({**HERE, "torch": "3"}, {}, 2, "they are of another machine or version than this (torch); measure again"),
        (HERE, {"hosts": {"elsewhere": 2}}, 2, "ran on other machines than this one"),
        (HERE, {"threads": 8}, 2, "ran with 8 threads a rank, and they are of one; set OMP_NUM_THREADS=1"),
        (HERE, {}, 4, "they say nothing of 4 ranks, each with a core of its own; --calibrate measures so many"),
    ],
)
def test_steps_that_are_none_of_the_calibrated_machine_change_nothing(
    measure: Measure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: dict[str, Any],
    start: dict[str, Any],
    ranks: int,
    sentence: str,
) -> None:
    monkeypatch.setattr("hyena_ds.bench.measure.machine", lambda: machine)
    (row,) = measured_of(measure([[0.3] * 6]), 2, None)
    row = replace(row, start={**row.start, **start}, shape=replace(row.shape, data_parallel=ranks // 2))
    (said,) = add_to_calibration(tmp_path / "c.json", calibration(), [row])
    assert said.startswith("plan's constants stay as they are: ") and sentence in said
    assert not (tmp_path / "c.json").exists()


def test_a_calibration_is_asked_only_about_runs_of_this_machine(measure: Measure) -> None:
    sweep = measure([[0.3] * 6])
    device: Device = machine_device(calibration(), 2)
    assert measured_of(sweep, 2, device)[0].prediction is not None
    environment = sweep.runs[0].directory / "environment.jsonl"
    environment.write_text(json.dumps({"ranks": 2, "hosts": {"elsewhere": 2}}) + "\n")
    assert measured_of(sweep, 2, device)[0].prediction is None


def test_the_slurm_array_has_a_task_a_grid_and_the_list_writes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(config.parent))
    options = ["--ranks", "4", "--nodes", "2", "--most", "3", "--device", "h200"]
    given = ["tune", str(config), "stages.0.global_batch=8", *options]
    assert main([*given, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 5 and "predicted for h200" in listed[0] and listed[2].startswith("yours  dp 2 x sp 2")
    assert not (config.parent / "runs").exists()
    assert main([*given, "--slurm"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[:3] == ["sbatch", "--nodes=2", "--ntasks-per-node=2"]
    script = Path(command[3]).read_text()
    assert "#SBATCH --array=0-2\n" in script and "#SBATCH --job-name=run-tune\n" in script
    (asked,) = [line for line in script.splitlines() if " -m hyena_ds " in line]
    sweep = str(config.parent / "runs" / "run-tune" / "sweep.yaml")
    assert f"sweep {sweep} --arguments" in asked
    assert main(["sweep", sweep, "--arguments", "1"]) == 0
    file, *overrides = shlex.split(capsys.readouterr().out)
    run = load_yaml(file, RunConfig, overrides)
    assert plan_stages(run, 4)[0].config.sequences == 4 and run.supervisor.restarts_without_progress == 0
    # On 4 ranks, as the sweep says, whatever the config's local_ranks.
    assert main(["tune", str(config), "stages.0.global_batch=8", "--table"]) == 1
    assert capsys.readouterr().out.count("not started") == 3


@pytest.mark.slow
def test_grids_are_measured_by_real_runs_and_plan_learns_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hyena_ds.bench.measure import machine

    config = write_config(tmp_path / "run.yaml", make_shards(tmp_path))
    known = {**calibration(), "machine": machine()}
    path = tmp_path / "calibration.json"
    write_calibration(path, known)
    output = tmp_path / "runs" / "run-tune"
    command = ["tune", str(config), "--steps", "3", "--most", "3", "--calibration", str(path)]
    stage = stage_on(config, 2)
    third = write_sweep(stage, candidates(stage, Cluster(1, 2, machine_device(known, 2)), 3), 3, 3).runs[2]
    (third.directory / "mine").mkdir(parents=True)  # no run can begin here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    whole = [sys.executable, "-m", "hyena_ds", *command]
    done = subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    results = list(csv.DictReader((output / "results.csv").open(newline="")))
    assert [row["status"] for row in results] == ["complete", "complete", "failed (2)"], said
    assert f"{third.name}: {third.directory}: found a directory that is no run" in said
    for row in results[:2]:
        run = output / row["run"]
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [1, 2, 3] and all("loss" in step for step in steps)
        assert not list(run.glob("checkpoints/step-*")), "a measurement keeps no weights"
        assert json.loads((run / "summary.json").read_text()) == {"step": 3, "context_length": 64}
        assert float(row["predicted_seconds"]) > 0 and float(row["peak_memory_gib"]) > 0.1
        seconds = [256 / step["tokens_per_second"] for step in steps[1:]]
        assert float(row["seconds"]) == pytest.approx(sum(seconds) / 2)
    assert "best: dp " in said and "settings of the best: stages.1.sequence_parallel=" in said
    assert "plan's constants: 2 measured steps added; error of what plan predicts" in said
    after = read_calibration(path)
    rows = [row for row in measured_of(load_sweep(str(stage.sweep_file), []), 2, None) if row.is_complete]
    before, now = errors_of(known, rows), errors_of(after, rows)
    assert now[0] <= before[0] and now[1] <= before[1]
    assert main([*command, "--table"]) == 0
    again = capsys.readouterr().out
    assert "2 measured steps added, 2 of which replace older ones" in again and "hyena-ds train" not in again
    assert read_calibration(path)["steps"] == after["steps"]
