"""What summary.json says of a test set: groups of outputs, against scikit-learn on their columns alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hyena_ds.config.task import TaskConfig
from hyena_ds.labelled import LabelledSet
from hyena_ds.tasks.outcomes import PREDICTIONS, error_from, record_test

OUTPUTS = ("TF_a", "HM_a", "TF_b", "TF_c", "HM_b")


def test_groups_of_outputs_are_scored_by_their_own_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 2, (60, 5)).astype(np.float32)
    targets[::7, 0] = np.nan
    outputs = draw.normal(size=(60, 5)) + np.nan_to_num(targets) * [0.2, 0.6, 1.0, 1.4, 1.8]
    names = tuple(f"row {number}" for number in range(60))
    data = LabelledSet(("ACGT",) * 60, targets, OUTPUTS, names, (None,) * 60)
    file = tmp_path / "test.csv"
    file.write_text("sequence,label\n")
    task = TaskConfig("multilabel", "train.csv", str(file), groups={"TF": "TF_", "HM": "HM_"})
    summary, lines = record_test(task, data, [*outputs], None, 7, tmp_path)
    found = summary["groups"]
    assert {name: group["outputs"] for name, group in found.items()} == {"TF": 3, "HM": 2}
    for name, columns in (("TF", [0, 2, 3]), ("HM", [1, 4])):
        known = [~np.isnan(targets[:, k]) for k in columns]
        areas = [roc_auc_score(targets[of, k], outputs[of, k]) for k, of in zip(columns, known, strict=True)]
        precisions = [
            average_precision_score(targets[of, k], outputs[of, k]) for k, of in zip(columns, known, strict=True)
        ]
        assert found[name]["metrics"] == pytest.approx(
            {
                "median_auroc": np.median(areas),
                "mean_auroc": np.mean(areas),
                "median_auprc": np.median(precisions),
                "mean_auprc": np.mean(precisions),
            }
        )
    assert lines[1].startswith("TF, 3 of its 5 outputs: median_auroc ") and len(lines) == 3
    errors = [one["standard_error"] for one in (summary, found["TF"], found["HM"])]
    assert all(one.keys() == {"median_auroc"} and 0.01 < one["median_auroc"] < 0.2 for one in errors)
    assert f"; standard error of median_auroc {errors[1]['median_auroc']:.4f}" in lines[1]


@pytest.mark.parametrize(("kind", "metric"), [("classification", "mcc"), ("regression", "pearson")])
def test_a_standard_error_can_be_had_of_the_written_predictions_too(tmp_path: Path, kind: str, metric: str) -> None:
    draw = np.random.default_rng(3)
    classes = ("no", '"yes"', "perhaps") if kind == "classification" else ("label",)
    targets = draw.integers(0, 3, 80) if kind == "classification" else draw.normal(size=80).astype(np.float32)
    outputs = draw.normal(size=(80, len(classes))) + (np.eye(3)[targets] if len(classes) == 3 else targets[:, None])
    data = LabelledSet(("ACGT",) * 80, targets, classes, tuple(map(str, range(80))), (None,) * 80)
    (tmp_path / "test.csv").write_text("sequence,label\n")
    task = TaskConfig(kind, "train.csv", str(tmp_path / "test.csv"), metric=metric)
    scale = None if kind == "classification" else (np.zeros(1), np.ones(1))
    summary, _ = record_test(task, data, [*outputs], scale, 7, tmp_path)
    assert error_from(tmp_path / PREDICTIONS, kind, metric) == pytest.approx(
        summary["standard_error"][metric], rel=1e-3
    )
    (tmp_path / PREDICTIONS).write_text("name\tlabel\tprobability_a\n1\tb\t0.5\n2\n")
    assert error_from(tmp_path / PREDICTIONS, kind, metric) is None
    assert error_from(tmp_path / "none.tsv", kind, metric) is None
