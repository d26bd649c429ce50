"""Boosted trees on states: XGBoost's own classifier of as many rounds, those that the validation split wants."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_ds.cli import main
from hyena_ds.config.task import TaskConfig, TreesConfig
from hyena_ds.labelled import LabelledSet
from hyena_ds.labelled.metrics import mcc
from hyena_ds.predict.trees import grow
from hyena_ds.tasks.labelled_sets import Sets
from tests.tasks.test_finetune_runs import config_of, summary_of

SETTINGS = {"rounds": 40, "depth": 2, "rate": 0.3, "patience": 5}


def _sets(kind: str, targets: Any, classes: int, **task: Any) -> Sets:
    n, half = len(targets), len(targets) // 2
    names = tuple(map(str, range(n)))
    data = LabelledSet(("ACGT",) * n, targets, names[:classes], names, (None,) * n)
    train, valid = data.take(np.arange(half)), data.take(np.arange(half, n))
    about = TaskConfig(kind, "train.csv", frozen="trees", trees=TreesConfig(**SETTINGS), **task)
    return Sets(about, train, valid, train)


@pytest.mark.parametrize("classes", [2, 3])
def test_trees_are_xgboost_s_of_the_round_that_validation_finds_best(classes: int) -> None:
    from xgboost import XGBClassifier

    draw = np.random.default_rng(classes)
    states = draw.normal(size=(300, 6)).astype(np.float32)
    first, second = states[:, 0] + 0.8 * draw.normal(size=300) > 0, states[:, 1] > 0.7
    targets = first.astype(np.int64) + (second if classes == 3 else 0)
    sets, tried = _sets("classification", targets, classes, class_weights="balanced"), list[float]()

    def judge(outputs: Any) -> float:
        tried.append(mcc(targets[150:], np.stack(outputs).argmax(1)))
        return tried[-1]

    found = grow(sets, 3, states[:150], states[150:], judge)
    assert sets.class_weights is not None and len(set(sets.class_weights.tolist())) > 1
    wanted = XGBClassifier(n_estimators=40, max_depth=2, learning_rate=0.3, random_state=3)
    wanted.fit(states[:150], targets[:150], sample_weight=sets.class_weights[targets[:150]])
    staged = [
        mcc(targets[150:], wanted.predict_proba(states[150:], iteration_range=(0, rounds)).argmax(1))
        for rounds in range(1, len(tried) + 1)
    ]
    assert tried == pytest.approx(staged), "a round was judged by other trees"
    rounds = 1 + int(np.argmax(staged))
    assert found.chosen == {"rounds": rounds} and len(tried) == rounds + 5 < 40
    outputs = found.outputs(states[150:])
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    assert np.abs(shares - wanted.predict_proba(states[150:], iteration_range=(0, rounds))).max() < 1e-5


def test_numbers_are_told_in_deviations_of_the_train_set() -> None:
    draw = np.random.default_rng(4)
    states = draw.normal(size=(400, 5)).astype(np.float32)
    targets = np.stack((100 + 20 * states[:, 0], states[:, 1] * states[:, 2]), 1).astype(np.float32)
    sets = _sets("regression", targets, 2)
    scaled = (targets[200:] - sets.scale[0]) / sets.scale[1]
    found = grow(
        sets, 0, states[:200], states[200:], lambda outputs: -float(np.mean((np.stack(outputs) - scaled) ** 2))
    )
    errors = np.mean((found.outputs(states[200:]) - scaled) ** 2, axis=0)
    assert errors[0] < 0.1 < errors[1] < 0.9 and found.outputs(states[200:]).shape == (200, 2)


@pytest.mark.slow
def test_a_run_of_trees_is_tested_once_and_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xgboost import Booster

    file = config_of(tmp_path, kind="regression", frozen="trees", trees=SETTINGS, reverse_complement=True)
    assert main(["finetune", str(file)]) == 0
    run = tmp_path / "runs" / "run"
    summary, said = summary_of(run), capsys.readouterr().out
    assert f"validation, rounds {summary['rounds']}: " in said and summary["test"]["n"] == 29
    assert summary["validation_pearson"] > 0.5 and summary["selected_by"] == "pearson"
    booster = Booster(model_file=str(run / "trees.json"))
    assert booster.num_boosted_rounds() == summary["rounds"]
    rows = list(csv.DictReader((run / "test_predictions.tsv").open(), delimiter="\t"))
    assert len({row["predicted"] for row in rows}) > 5
    assert all(9 < float(row["predicted"]) < 16 for row in rows), "not in the unit of the labels, 10 to 15"
    kept = json.loads((run / "summary.json").read_text())
    assert main(["finetune", str(file)]) == 0 and json.loads((run / "summary.json").read_text()) == kept
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "found boosted trees on the model's states, wanted a head of layers" in error and "trees.json" in error
    assert not (tmp_path / "out").exists()


def test_without_xgboost_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert main(["finetune", str(config_of(tmp_path, frozen="trees"))]) == 2
    assert "xgboost is not installed; pip install 'hyena-ds[predict]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
