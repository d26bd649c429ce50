"""A sweep's file: which runs it makes, what is refused, and how one run is handed on. Starts no training."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.config import PrepConfig
from hyena_ds.cli import main
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.sweeps.plan import load_sweep
from tests.paths import ROOT
from tests.training.runs import write_config

SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write_sweep(directory: Path, text: str) -> str:
    write_config(directory / "base.yaml", directory / "shards")
    path = directory / "sweep.yaml"
    path.write_text(f"name: trial\nbase: base.yaml\noutput: {directory / 'runs'}\n{text}")
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_sweep_plans_on_the_ranks_it_asks_for(path: Path) -> None:
    sweep = load_sweep(str(path), [])
    assert sweep.config.name == path.stem and path.read_text().startswith("# ")
    for run in sweep.runs:
        assert plan_stages(run.config, run.config.local_ranks or run.config.widest_sequence_parallel)


def test_the_sweep_of_contexts_doubles_from_1k_to_64k_with_the_same_tokens_steps_and_scored_bases() -> None:
    runs = load_sweep(str(ROOT / "configs" / "sweeps" / "contexts.yaml"), []).runs
    assert [run.config.schedule[0].context_length for run in runs] == [1024 << rung for rung in range(7)]
    same = [(r.config.total_tokens, r.config.total_steps, r.config.model, r.config.optimizer) for r in runs]
    assert same == [same[0]] * len(runs)
    assert {run.config.validation.windows * run.config.schedule[0].context_length for run in runs} == {196_608}


def test_the_sweep_of_the_paper_crosses_sizes_and_contexts_and_holds_out_its_chromosomes() -> None:
    runs = [run.config for run in load_sweep(str(ROOT / "configs" / "sweeps" / "paper_contexts.yaml"), []).runs]
    found = {(run.model.layers, run.model.width, run.schedule[0].context_length) for run in runs}
    short = {1024 << 2 * rung for rung in range(4)}
    sizes = {(2, 128), (4, 128), (2, 256), (4, 256), (8, 256)}
    wanted = {(*size, context) for size in sizes for context in short}
    assert found == wanted | {(8, 256, 1 << 18), (8, 256, 1 << 20)} and len(runs) == len(found)
    assert {(run.total_tokens, run.total_steps) for run in runs} == {(10_000 << 20, 10_000)}
    assert {run.validation.windows * run.schedule[0].context_length for run in runs} == {1 << 22}
    for run in runs:
        assert run.model.maximum_context == run.schedule[0].context_length
        assert plan_stages(run, 8)[0].data_parallel * run.schedule[0].sequence_parallel == 8
    assert {source.shards for run in runs for source in run.data.sources} == {"data/hg38"}
    splits = load_yaml(str(ROOT / "configs" / "prep" / "hg38.yaml"), PrepConfig).splits
    assert splits.by_chromosome["test"] == ("chr14", "chrX") and not splits.by_chromosome["train"]


def test_rows_change_together_axes_on_their_own_and_the_command_line_changes_all(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        "settings: {zero_stage: 2}\nrun: 'L{stages.1.context_length}/{model.width}'\n"
        "rows:\n- {stages.1.context_length: 32, seed: 1}\n- {stages.1.context_length: 64, seed: 2}\n"
        "axes: {model.width: [16, 32]}\n",
    )
    sweep = load_sweep(file, ["validation.windows=3"])
    assert [run.name for run in sweep.runs] == ["L32_16", "L32_32", "L64_16", "L64_32"]
    found = [(r.config.stages[1].context_length, r.config.seed, r.config.model.width) for r in sweep.runs]
    assert found == [(32, 1, 16), (32, 1, 32), (64, 2, 16), (64, 2, 32)]
    assert all(run.config.zero_stage == 2 and run.config.validation.windows == 3 for run in sweep.runs)
    assert sweep.runs[2].directory == tmp_path / "runs" / "trial" / "L64_16"


def test_a_run_without_a_template_is_named_by_all_that_varies(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, "axes: {optimizer.learning_rate: [6e-4, 1e-3], seed: [1]}\n")
    assert [run.name for run in load_sweep(file, []).runs] == ["learning_rate-6e-4-seed-1", "learning_rate-1e-3-seed-1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "sweep.yaml:1: axes: found neither axes nor rows, wanted settings to vary"),
        ("axis: {seed: [1]}", "sweep.yaml:4: axis: found an unknown key; did you mean 'axes'?"),
        ("axes: {seed: 1}", "sweep.yaml:4: axes.seed: found '1', wanted a list"),
        ("axes: {seed: []}", "sweep.yaml:4: axes: seed: found an empty list, wanted values"),
        ("axes: {sed: [1]}", "run sed-1: override 'sed=1': sed: found an unknown key; did you mean 'seed'?"),
        ("axes: {seed: [x]}", "run seed-x: override 'seed=x': seed: found 'x', wanted a whole number"),
        ("axes: {name: [x]}", "axes: name: the sweep sets it itself; leave it out"),
        (
            "settings: {seed: 1}\naxes: {seed: [1]}",
            "seed: found it in more than one of settings, rows and axes; wanted one",
        ),
        ("rows: [{seed: 1}, {zero_stage: 1}]", "rows: row 1 has the keys zero_stage, wanted those of row 0: seed"),
        ("run: x{sed}\naxes: {seed: [1]}", "run: found {sed}, wanted one of seed"),
        ("run: x\naxes: {seed: [1, 2]}", "runs 0 and 1 are both named x; name all that varies in `run`"),
        ("axes: {stages.1.context_length: [128]}", "longer than model.maximum_context 64"),
    ],
)
def test_what_is_wrong_in_a_sweep_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = write_sweep(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load_sweep(file, [])
    assert sentence in str(raised.value)


def test_the_command_line_does_not_change_what_the_sweep_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, "axes: {seed: [1, 2]}\n")
    for override in ("seed=3", "name=x"):
        assert main(["sweep", file, override, "--list"]) == 2
        assert f"override '{override}': the sweep sets {override.partition('=')[0]} itself" in capsys.readouterr().err
    assert main(["sweep", file, "--only", "2"]) == 2
    assert "found no run '2', wanted 0 to 1 or a name; --list prints them" in capsys.readouterr().err
    assert main(["sweep", file, "stages.0.global_batch=5"]) == 2
    assert "sweep.yaml: run seed-1: stages.0.global_batch: found 5 sequences" in capsys.readouterr().err


def test_the_arguments_of_a_run_are_those_of_train_quoted_for_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, "axes: {seed: [1, 2], 'optimizer.betas': ['[0.9, 0.95]']}\nrun: 's{seed}'\n")
    assert main(["sweep", file, "zero_stage=3", "--arguments", "1"]) == 0
    config, *overrides = shlex.split(capsys.readouterr().out)
    run = load_yaml(config, RunConfig, overrides)
    assert (run.seed, run.zero_stage, run.optimizer.betas, run.name) == (2, 3, (0.9, 0.95), "s2")


def test_a_task_of_the_slurm_array_hands_its_own_run_to_the_launch_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path, "axes: {seed: [1, 2, 3]}\n")
    script = tmp_path / "launch" / "slurm.sbatch"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --job-name=other\n#SBATCH --signal=B:USR1@300\nprintf "%s\\n" "$@"\n'
    )
    monkeypatch.setattr("hyena_ds.sweeps.slurm.launch_script", lambda name: script.with_name(name))
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", file, "zero_stage=2", "--slurm"]) == 0
    command = capsys.readouterr().out.split()
    assert command[0] == "sbatch"
    options = [line for line in Path(command[1]).read_text().splitlines() if line.startswith("#SBATCH")]
    wanted = ["--nodes=2", "--signal=B:USR1@300", "--job-name=trial", "--array=0-2"]
    assert options == [f"#SBATCH {option}" for option in wanted]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["bash", command[1]], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    config, *overrides = done.stdout.splitlines()
    run = load_yaml(config, RunConfig, overrides)
    assert (run.seed, run.zero_stage, run.name) == (3, 2, "seed-3")


def test_the_list_says_how_far_each_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, "axes: {seed: [1, 2]}\n")
    run = tmp_path / "runs" / "trial" / "seed-2"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": 1.0, "tokens": 9}) + "\n" + '{"step": 5, "lo')
    assert main(["sweep", file, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "seed-1" in listed[1] and "not started" in listed[1]
    assert "seed-2" in listed[2] and "unfinished, 4 of 10 steps" in listed[2]
