"""A suite's runs, what is kept of its tasks, and every sentence."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyena_ds.cli import main
from hyena_ds.config.nodes import compose
from hyena_ds.errors import UserError
from hyena_ds.suites.preparing import prepare, read_prepared
from hyena_ds.suites.scores import scores_of
from hyena_ds.suites.table import tables_of
from tests.paths import ROOT
from tests.suites.small_suite import TINY, load, task, write_suite

PRETRAINED = {"initialize_from": "weights"}


def test_a_run_s_config_has_the_task_and_the_settings_of_its_row(tmp_path: Path) -> None:
    plan = load(write_suite(tmp_path, tasks=[task("of/a", rows=12), task("of/b")]))
    assert [run.name for run in plan.runs][:3] == [
        "of/a, from scratch, seed 0",
        "of/a, from scratch, seed 1",
        "of/a, probe, seed 0",
    ]
    assert [run.number for run in plan.runs] == [*range(10)]
    scratch, probe = plan.runs_of(plan.suite.tasks[0], "from scratch"), plan.runs_of(plan.suite.tasks[0], "probe")
    config = yaml.safe_load(scratch[1].text)
    assert config == {
        "name": "from_scratch-1",
        "output": str(tmp_path / "runs/small/runs/of/a"),
        "seed": 1,
        "initialize_from": "random",
        "local_ranks": 1,
        "task": {
            "kind": "classification",
            "train": str(tmp_path / "data/a/train.csv"),
            "test": str(tmp_path / "data/a/test.csv"),
            "valid": "0.25",
            "metric": "mcc",
            "rows": 12,
            "frozen": "false",
            "like": "no/weights",
            "epochs": 1,
            "batch": 8,
        },
        "model": {"width": 8, "layers": 1, "maximum_context": 64},
    }
    assert probe[0].config.frozen == "probe" and probe[0].config.rows == 12
    trees = {"t": {"initialize_from": "w", "training": "trees", "settings": {"task.trees.depth": "4"}}}
    grown = load(write_suite(tmp_path, name="grown", models=trees, tasks=[task("of/a")])).runs[0].config
    assert grown.frozen == "trees" and grown.trees.depth == 4
    assert compose(scratch[0].text, "again") is not None
    pretrained = load(write_suite(tmp_path)).runs[-4]
    assert (pretrained.row, pretrained.task.name) == ("pretrained", "of/b")
    assert yaml.safe_load(pretrained.text)["initialize_from"] == "no/weights"


def test_a_task_is_audited_once_as_long_as_its_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load(write_suite(tmp_path, tasks=[task("of/a", rows=12), task("of/b")]))
    first = plan.suite.tasks[0]
    found = prepare(plan, first)
    assert found == read_prepared(plan.suite, first)
    assert found.verdict in ("OK", "WARN") and found.rows == (12, 48), "row zero is fitted on what the models train on"
    assert {"majority", "k-mers"} <= {name for name, _ in found.rules}

    def never(*_: Any) -> Any:
        raise AssertionError("audited again")

    monkeypatch.setattr("hyena_ds.suites.audit.audit", never)
    assert prepare(plan, first) == found
    assert tables_of(plan, scores_of(plan))[2].rows[0][2] == "48 (12 drawn) / 48"
    (tmp_path / "data" / "a" / "test.csv").write_text((tmp_path / "data" / "a" / "train.csv").read_text())
    with pytest.raises(AssertionError, match="audited again"):
        prepare(plan, first)
    monkeypatch.undo()
    assert prepare(plan, first).verdict == "FAIL"


def test_a_validation_set_that_is_a_file_is_audited_too(tmp_path: Path) -> None:
    plan = load(write_suite(tmp_path, tasks=[task("of/a", valid="a/test.csv"), task("of/b")]))
    first, second = plan.suite.tasks
    found = prepare(plan, first)
    assert found.verdict == "FAIL"
    assert "FAIL: 48 (100.0%) of the test sequences are in dev, on which a model is chosen" in found.reasons
    assert not any("dev" in reason for reason in prepare(plan, second).reasons)
    file = plan.suite.directory / "tasks" / "of" / "a.json"
    kept = json.loads(file.read_text())
    del kept["audit"]["dev"]
    kept["audit"]["reasons"] = []
    file.write_text(json.dumps(kept))  # as before validation sets were looked at
    assert prepare(plan, first) == found


def test_row_zero_is_said_of_groups_of_outputs_too(tmp_path: Path) -> None:
    groups = {"by its letters": "A_", "by chance": "B_"}
    grouped = task("of/a", kind="multilabel", metric="median_auroc", groups=groups)
    plan = load(write_suite(tmp_path, tasks=[grouped, task("of/b")]))
    draw = random.Random(1)
    for split in ("train", "test"):
        file = tmp_path / "data" / "a" / f"{split}.csv"
        rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
        lines = [f"{sequence},{label},{draw.randrange(2)}" for sequence, label in rows]
        file.write_text("\n".join(["sequence,label_A_1,label_B_1", *lines]) + "\n")
    found = prepare(plan, plan.suite.tasks[0])
    by_letters, by_chance = (found.best("median_auroc", group) for group in groups)
    assert by_letters is not None and by_letters[1] > 0.7
    assert by_chance is not None and by_chance[1] < by_letters[1]
    assert [one.row_zero for one in scores_of(plan)][1:3] == [by_letters, by_chance]
    file = plan.suite.directory / "tasks" / "of" / "a.json"
    kept = json.loads(file.read_text())
    del kept["groups"]
    file.write_text(json.dumps(kept))  # as before groups were looked at
    assert prepare(plan, plan.suite.tasks[0]) == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "none.csv", "get": "ask for it"}, "none.csv: no such file or directory; ask for it"),
        ({"train": "none.csv"}, "none.csv: no such file or directory; name an existing one, or get it"),
        ({"label": "size"}, "found no column 'size'"),
        (
            {"train": None, "test": None, "valid": None, "recipe": "species --genome a=none.fa --genome b=none.fa"},
            "hyena-ds prep task species: none.fa:",
        ),
    ],
)
def test_a_task_that_cannot_run_is_passed_over_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    file = write_suite(tmp_path, tasks=[{k: v for k, v in task("of/b", **changes).items() if v is not None}])
    assert main(["evaluate", str(file)]) == 1
    printed = capsys.readouterr().out
    assert said in printed and "finetune" not in printed.replace("hyena-ds finetune", "finetune").split("Scores")[0]
    assert said in (tmp_path / "runs" / "small" / "results.md").read_text()
    assert not (tmp_path / "runs" / "small" / "runs").exists()


def test_a_task_of_the_array_is_given_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "it's $(touch pwned)" / "slurm.sbatch"
    script.parent.mkdir()
    script.write_text('#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --job-name=other\nprintf "%s\\0" "$@"\n')
    monkeypatch.setattr("hyena_ds.sweeps.slurm.launch_script", lambda name: script)
    directory = tmp_path / "in $(touch pwned) 'x'"
    file = write_suite(directory)
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    assert main(["evaluate", str(file), "--slurm", "--row", "from scratch"]) == 0
    monkeypatch.undo()
    sbatch, path = shlex.split(printed[-1])
    assert sbatch == "sbatch" and "#SBATCH --array=0-1\n" in Path(path).read_text()
    subprocess.run(["bash", "-n", path], check=True, timeout=20)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(["bash", path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = load(file).runs[1]
    assert done.stdout == f"{wanted.file}\0" and wanted.file.read_text() == wanted.text
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"tasks": []}, [], "suite.yaml:"),
        ({"tasks": []}, [], "tasks: found none, wanted at least one of the tasks"),
        ({}, ["--row", "other"], "found no row 'other', wanted one of pretrained, from scratch, probe"),
        ({}, ["--task", "of/c*"], "found no task 'of/c*', wanted one of of/a, of/b"),
        ({}, ["--arguments", "8"], "found no run '8', wanted 0 to 7; --list prints them"),
        ({}, ["--at-once", "0"], "--at-once: found 0, wanted"),
        ({}, ["seed=1"], "override 'seed=1': seed: found an unknown key; did you mean 'seeds'?"),
        ({"settings": {"seed": "1"}}, [], "settings: seed: the suite sets it itself; leave it out"),
        ({"settings": {"task.train": "x"}}, [], "settings: task.train: the suite sets it itself"),
        ({"settings": {"task.epohs": "1"}}, [], "task.epohs: found an unknown key; did you mean 'epochs'?"),
        ({"settings": {"optimizer.learning_rate": "x"}}, [], "row from scratch: override 'optimizer.learning_rate=x'"),
        ({"models": {"a b": PRETRAINED, "a_b": PRETRAINED}, "tasks": [task("of/a")]}, [], "would both be"),
        ({"tasks": [task("of/b", train="none.csv")]}, ["--slurm"], "found tasks that cannot be run, named above"),
        (
            {"models": {"t": {"initialize_from": "w"}}, "tasks": [task("of/a", without={"t": "no"})]},
            ["--slurm"],
            "found 0 runs, wanted 1 to 1,000",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str], said: str
) -> None:
    assert main(["evaluate", str(write_suite(tmp_path, **changes)), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and error.startswith("hyena-ds: error: ")
    assert not (tmp_path / "runs" / "small" / "runs").exists()


def test_a_suite_that_is_not_there_and_settings_that_changed_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: cannot read the config .* name an existing file"):
        load(tmp_path / "none.yaml")
    file = write_suite(tmp_path)
    for run in load(file).runs[:2]:
        run.write()
        run.directory.mkdir()
    assert load(file, "seeds=[0, 1, 2]").runs
    with pytest.raises(
        UserError, match=r"holds 2 of its runs with other settings, as of/a, from scratch, seed 0; set them"
    ):
        load(write_suite(tmp_path, settings={"task.epochs": "2", **TINY}))
    secret = {"task.genome": "x", "monitors.wandb": "https://user:secret@host/"}
    with pytest.raises(UserError, match=r"settings: task.genome: the suite sets"):
        load(write_suite(tmp_path, settings=secret))
    with pytest.raises(UserError, match=r"settings: resume.*|found a secret"):
        load(write_suite(tmp_path, settings={"optimizer.learning_rate": "https://user:secret@host/"}))
