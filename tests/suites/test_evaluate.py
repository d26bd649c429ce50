"""A suite's runs, what is kept of its tasks, its tables against numbers worked out by hand, and every sentence."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from hyena_ds.cli import main
from hyena_ds.config.nodes import compose
from hyena_ds.errors import UserError
from hyena_ds.suites.preparing import prepare, read_prepared
from hyena_ds.suites.scores import Pair, scores_of
from hyena_ds.suites.table import markdown_of, paired_note, tables_of
from hyena_ds.suites.writing import write_results
from tests.paths import ROOT
from tests.suites.small_suite import TINY, audited, finish, load, task, write_suite

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


def suite_with_scores(tmp_path: Path) -> Any:
    published = [
        {"model": "Ours | theirs", "source": "a table", "scores": {"of/a": 0.7}},
        {
            "model": "Again",
            "source": "another table",
            "independent": True,
            "seeds": 5,
            "spread": "sd",
            "scores": {"of/a": 0.6, "of/b": 0.9},
            "spreads": {"of/a": 0.01},
            "differs": "<b>its own split</b>",
        },
    ]
    models = {
        "pretrained": {"initialize_from": "w"},
        "scratch": {"initialize_from": "random", "like": "pretrained"},
        "trees": {"initialize_from": "w", "training": "trees", "tasks": ["of/a"]},
    }
    file = write_suite(
        tmp_path,
        seeds=[0, 1, 2],
        models=models,
        published=published,
        tasks=[task("of/a", without={"trees": "no memory"}), task("of/b", leaks="it leaks")],
    )
    plan = load(file)
    for seed, score, error in ((0, 0.5, 0.03), (1, 0.6, 0.05), (2, 0.7, None)):
        finish(plan, "pretrained", "of/a", {seed: score}, standard_error={"mcc": error})
    finish(plan, "scratch", "of/a", {0: 0.4, 1: 0.5, 2: 0.3})
    audited(plan, "of/a", {"majority": 0.0, "k-mers": 0.55})
    finish(plan, "pretrained", "of/b", {1: 0.8})
    audited(plan, "of/b", {"nearest train sequence": 0.95, "k-mers": 0.2}, "FAIL")
    return file, plan


def test_the_tables_have_the_numbers_that_a_hand_gets(tmp_path: Path) -> None:
    _, plan = suite_with_scores(tmp_path)
    a, b = scores_of(plan)
    assert [row.mean for row in a.rows] == [pytest.approx(0.6), pytest.approx(0.4), None]
    assert a.rows[0].deviation == pytest.approx(0.1) and b.rows[0].deviation is None
    assert (a.zero_wins, b.zero_wins) == (False, True) and a.row_zero == ("k-mers", 0.55)
    scores, errors, audits, pairs, published, missing = tables_of(plan, [a, b])
    assert scores.rows == [
        ["of/a", "mcc", "WARN", "0.550", "0.600 ± 0.100 *", "0.400 ± 0.100", "not run"],
        ["of/b", "mcc", "FAIL, known", "0.950 *", "0.800 (1 of 3 seeds)", "- (0 of 3 seeds)", "not run"],
    ]
    assert errors.rows == [
        ["of/a", "row zero: k-mers", "0.550", "-", "-", "-", "48", "48"],
        ["of/a", "pretrained", "0.600", "0.100", "0.040", "3", "48", "48"],
        ["of/a", "scratch", "0.400", "0.100", "-", "3", "48", "48"],
        ["of/b", "row zero: nearest train sequence", "0.950", "-", "-", "-", "48", "48"],
        ["of/b", "pretrained", "0.800", "-", "-", "1", "48", "48"],
    ]
    assert audits.rows[1] == ["of/b", "FAIL", "50 / 48", "FAIL: planted; known: it leaks"]
    # Differences 0.1, 0.1, 0.4: mean 0.2, standard deviation 0.1732, t = 0.2 / (0.1732 / sqrt 3) = 2
    assert pairs.rows == [["of/a", "pretrained - scratch", "+0.200", "3", "2.00", "0.184"]]
    assert published.rows[0] == ["of/a", "Ours | theirs", "0.700", "mcc", "yes", "a table (authors)"]
    assert published.rows[1][1:5] == [
        "Again",
        "0.600 ± 0.010",
        "mcc, sd, 5 seeds",
        "not comparable: <b>its own split</b>",
    ]
    assert ["of/b", "scratch", "0, 1, 2", "not started", ""] in missing.rows
    assert missing.rows[0] == ["of/a", "trees", "-", "left out", "no memory"]
    assert missing.rows[-1] == ["of/b", "trees", "-", "left out", "this row is of other tasks"]
    text = markdown_of(plan, [a, b])
    assert "7 of 12 runs complete" in text and "| Ours \\| theirs | 0.700 |" in text
    assert all(line.startswith("|") for line in text.splitlines() if " | " in line)


def test_a_row_without_a_seed_is_one_measurement_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {
        "probe": {"initialize_from": "w", "training": "probe"},
        "trees": {"initialize_from": "w", "training": "trees"},
        "random": {"initialize_from": "random", "like": "probe", "training": "probe"},
        "head": {"initialize_from": "w", "training": "head"},
    }
    given = task("of/a", valid="b/train.csv")
    tasks = [given, task("of/b"), {**given, "name": "of/c", "rows": 12}]
    plan = load(write_suite(tmp_path, models=models, tasks=tasks))
    assert {
        (one.name, row) for one in plan.suite.tasks for row in models if plan.suite.is_one_measurement(row, one)
    } == {
        ("of/a", "probe"),
        ("of/a", "trees"),
    }
    for row, score in (("probe", 0.5), ("trees", 0.6), ("random", 0.3), ("head", 0.4)):
        finish(plan, row, "of/a", {0: score, 1: score + 1e-9})
    found = scores_of(plan)
    scores, errors, _, pairs, *_ = tables_of(plan, found)
    assert scores.rows[0][4:] == [
        "0.500 (one measurement)",
        "0.600 (one measurement) *",
        "0.300 ± 0.000",
        "0.400 ± 0.000",
    ]
    assert [row[3:6] for row in errors.rows[:3]] == [["-", "-", "one measurement"]] * 2 + [["0.000", "-", "2"]]
    assert pairs.rows[0] == ["of/a", "probe - trees", "-0.100", "1", "-", "-"]
    texts: list[str] = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.legend", lambda self, **_: texts.extend(self.axes[0].get_legend_handles_labels()[1])
    )
    write_results(plan)
    assert "crossed out: one measurement, no seed in it" in texts
    rows = list(csv.DictReader((tmp_path / "runs" / "small" / "results.csv").open(newline="")))
    assert [(row["seeds"], row["measurements"], row["deviation"]) for row in rows[:2]] == [("2", "1", "")] * 2


def test_groups_of_outputs_have_rows_beside_what_is_published_of_them(tmp_path: Path) -> None:
    published = [{"model": "M", "source": "a table", "scores": {"of/a/TF": 0.7}}]
    grouped = task("of/a", kind="multilabel", metric="median_auroc", groups={"TF": "TF_", "HM": "HM_"})
    models = {"pretrained": {"initialize_from": "w"}, "other": {"initialize_from": "w"}}
    plan = load(write_suite(tmp_path, models=models, tasks=[grouped], published=published))
    assert yaml.safe_load(plan.runs[0].text)["task"]["groups"] == {"TF": "TF_", "HM": "HM_"}
    for number, row in enumerate(models):
        of = {"metrics": {"median_auroc": 0.8 + number / 10}, "standard_error": {"median_auroc": 0.02}, "outputs": 3}
        finish(plan, row, "of/a", {0: 0.1, 1: 0.1}, metrics={"median_auroc": 0.6}, groups={"TF": of})
    found = scores_of(plan)
    scores, errors, audits, _, beside, missing = tables_of(plan, found)
    assert [row[0] for row in scores.rows] == ["of/a", "of/a/TF", "of/a/HM"]
    assert scores.rows[1][2:] == ["-", "-", "0.800 ± 0.000", "0.900 ± 0.000 *"]
    assert ["of/a/TF", "pretrained", "0.800", "0.000", "0.020", "2", "-", "-"] in errors.rows
    assert beside.rows == [["of/a/TF", "M", "0.700", "median_auroc", "yes", "a table (authors)"]]
    assert [(row[0], row[3]) for row in missing.rows] == [("of/a/HM", "damaged")] * 4
    assert len(audits.rows) == 1 and "4 of 4 runs complete" in markdown_of(plan, found)
    assert (
        found[2].rows[0].runs[0].error == f"{plan.runs[0].directory / 'summary.json'}: found no metrics of the group HM"
    )
    write_results(plan)
    rows = list(csv.DictReader((tmp_path / "runs" / "small" / "results.csv").open(newline="")))
    mine = {(row["task"], row["what"], row["row"]): row["mean"] for row in rows}
    assert mine["of/a/TF", "model", "other"] == "0.9" and mine["of/a/TF", "published", "M"] == "0.7"


def test_a_paired_test_is_scipy_s(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for n in (2, 3, 7):
        one, other = draw.normal(size=n), draw.normal(size=n)
        pair = Pair("a", "b", tuple((one - other).tolist()))
        wanted = stats.ttest_rel(one, other)
        assert (pair.t, pair.p) == (pytest.approx(wanted.statistic), pytest.approx(wanted.pvalue))
    assert Pair("a", "b", (0.1,)).p is None and Pair("a", "b", (0.1, 0.1)).p is None
    # t of 0.975 at 2 degrees of freedom is 4.303, and 4.303 / sqrt 3 = 2.48
    assert "With 3 seeds it has 2 degrees of freedom: p < 0.05 takes a mean difference of 2.5 standard" in paired_note(
        [3, 5]
    )
    assert "nothing is tested" in paired_note([])


def test_what_is_written_stays_text_and_says_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = suite_with_scores(tmp_path)
    assert main(["evaluate", str(file), "--table"]) == 0
    printed = capsys.readouterr().out
    assert "0.600 ± 0.100 *" in printed and "no plot" not in printed
    assert max(map(len, printed.split("Rows against")[0].split("Audits")[0].splitlines())) < 100
    directory = tmp_path / "runs" / "small"
    page = (directory / "report.html").read_text()
    assert "&lt;b&gt;its own split&lt;/b&gt;" in page and "<b>its own" not in page
    assert "data:image/png;base64," in page and "http" not in page
    assert (directory / "results.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((directory / "results.csv").open(newline="")))
    mine = {(row["task"], row["what"], row["row"]): row for row in rows}
    one = mine["of/a", "model", "pretrained"]
    assert (float(one["mean"]), one["seeds"], one["scores"]) == (pytest.approx(0.6), "3", "0:0.5 1:0.6 2:0.7")
    assert (float(one["standard_error"]), one["measurements"]) == (pytest.approx(0.04), "3")
    assert mine["of/b", "row zero", "nearest train sequence"]["row_zero_wins"] == "True"
    assert mine["of/b", "published", "Again"]["compares"] == "not comparable: <b>its own split</b>"
    assert mine["of/a", "published", "Ours | theirs"]["compares"] == "yes"
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


def test_damaged_and_foreign_results_are_left_out_with_the_reason(tmp_path: Path) -> None:
    _, plan = suite_with_scores(tmp_path)
    run = plan.runs_of(plan.suite.tasks[0], "pretrained")
    (run[0].directory / "summary.json").write_text("[]")
    finish(plan, "pretrained", "of/a", {1: None})
    finish(plan, "pretrained", "of/a", {2: 0.9}, sha256="e" * 64)
    outcome = {"exit_code": 2, "error": "no room | here", "seconds": 1.0}
    scratch = plan.runs_of(plan.suite.tasks[1], "scratch")[0]
    scratch.directory.with_name("scratch-0.outcome.json").write_text(json.dumps(outcome))
    (tmp_path / "runs" / "small" / "tasks" / "of" / "b.json").write_text('{"audit": []}')
    found = scores_of(plan)
    assert found[0].rows[0].mean is None and found[1].prepared is None
    rows = {(row[0], row[1], row[2]): row[3:] for row in tables_of(plan, found)[-1].rows}
    assert rows["of/a", "pretrained", "0"][0] == "damaged"
    assert rows["of/a", "pretrained", "1"] == ["complete", "mcc cannot be said of its predictions"]
    assert rows["of/a", "pretrained", "2"][0] == "other data"
    assert rows["of/b", "scratch", "0"] == ["failed (2)", "no room | here"]
    assert write_results(plan)[0][0].startswith("written: ")


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
