"""What summary.json says of a test set: groups of outputs, against scikit-learn on their columns alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hyena_ds.config.task import TaskConfig
from hyena_ds.labelled import LabelledSet
from hyena_ds.tasks.outcomes import record_test

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
