"""What a head's outputs say of labelled sequences: probabilities or numbers, how good they are, and the table of them.

    outputs of every reading --both strands' mean--> one a sequence --softmax, sigmoid, or in the label's unit--> predictions
    --labelled/metrics--> measures;  --> test_predictions.tsv

n sequences, K outputs, L bases of one sequence.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.task import TaskConfig
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.tokenizer import encode, reverse_complement
from hyena_ds.labelled import LabelledSet
from hyena_ds.labelled.metrics import OF_KIND, measured, of_outputs
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.labelled.uncertainty import standard_error
from hyena_ds.monitoring.metrics import finite
from hyena_ds.tasks.labelled_sets import chosen_by, digest, groups_of

PREDICTIONS = "test_predictions.tsv"
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reading:
    """A sequence of a set as it is read: on the strand that it has, or in reverse on the other."""

    data: LabelledSet
    number: int
    reverse: bool

    def __str__(self) -> str:
        return f"{self.data.names[self.number]} ({'-' if self.reverse else '+'})"

    @property
    def length(self) -> int:
        """Bases."""
        return len(self.data.sequences[self.number])

    @property
    def tokens(self) -> NDArray[np.uint8]:
        """Ids of its bases."""
        ids = encode(self.data.sequences[self.number])
        return reverse_complement(ids) if self.reverse else ids

    @property
    def target(self) -> Any:
        """As the set has it; of bases, in the order in which they are read."""
        found = self.data.targets[self.number]
        return found[::-1] if self.reverse and isinstance(self.data.targets, tuple) else found


def readings(data: LabelledSet, both_strands: bool) -> list[Reading]:
    """Every sequence on the strand it has, and on the other one too if that is asked for; the longest first."""
    strands = (False, True) if both_strands else (False,)
    found = [Reading(data, number, reverse) for number in range(len(data)) for reverse in strands]
    return sorted(found, key=lambda reading: -reading.length)


def outputs_of(data: LabelledSet, read: Sequence[Reading], outputs: Sequence[NDArray[np.float32]]) -> list[Floats]:
    """One array a sequence of `data`, (K,) or (L, K): the mean of its readings' outputs, without what is padding."""
    total: list[Any] = [0.0] * len(data)
    count = np.zeros(len(data))
    for reading, output in zip(read, outputs, strict=True):
        if output.ndim > 1:
            output = output[: reading.length][:: -1 if reading.reverse else 1]
        total[reading.number] = total[reading.number] + output.astype(np.float64)
        count[reading.number] += 1
    return [each / times for each, times in zip(total, count, strict=True)]


def predictions_of(kind: str, outputs: Floats, scale: tuple[Floats, Floats] | None) -> Floats:
    """(..., K) outputs -> probabilities of the classes, or of each output; of a regression, numbers in the unit of the labels."""
    if kind == "regression":
        assert scale is not None
        return outputs * scale[1] + scale[0]
    if kind == "multilabel":
        return 1 / (1 + np.exp(-outputs))
    shifted: Floats = np.exp(outputs - outputs.max(-1, keepdims=True))
    shares: Floats = shifted / shifted.sum(-1, keepdims=True)
    return shares


def measures(kind: str, data: LabelledSet, predictions: Sequence[Floats]) -> dict[str, float]:
    """All metrics of the kind, of one prediction a sequence."""
    targets = data.targets
    if isinstance(targets, tuple):
        return measured(kind, np.concatenate(targets), np.concatenate(predictions))
    return measured(kind, targets, np.stack(predictions))


def mean_loss(kind: str, data: LabelledSet, outputs: Sequence[Floats], scale: tuple[Floats, Floats] | None) -> float:
    """The loss of the sequences' outputs, as tasks/heads.py has it."""
    if kind in ("classification", "per_base"):
        flat = np.concatenate(outputs) if kind == "per_base" else np.stack(outputs)
        target = np.concatenate(data.targets) if isinstance(data.targets, tuple) else data.targets
        known = np.flatnonzero(target != UNLABELLED)
        highest = flat.max(-1)
        losses = highest + np.log(np.exp(flat - highest[:, None]).sum(-1))
        return float(np.mean(losses[known] - flat[known, target[known].astype(np.int64)]))
    values = np.stack(outputs)
    target = np.asarray(data.targets, dtype=np.float64).reshape(values.shape)
    if kind == "multilabel":
        losses = np.logaddexp(0, values) - values * target
    else:
        assert scale is not None
        losses = (values - (target - scale[0]) / scale[1]) ** 2
    return float(np.nanmean(losses))


def record_test(
    task: TaskConfig,
    data: LabelledSet,
    outputs: Sequence[Floats],
    scale: tuple[Floats, Floats] | None,
    step: int,
    directory: Path,
) -> tuple[dict[str, Any], list[str]]:
    """(`test` of summary.json, lines for the log) of the test set's outputs under the weights of `step`.

    Writes test_predictions.tsv into `directory`. Raises OSError.
    """
    assert task.test is not None
    predictions = [predictions_of(task.kind, each, scale) for each in outputs]
    write_predictions(directory / PREDICTIONS, task.kind, data, predictions)
    measured = {"loss": mean_loss(task.kind, data, outputs, scale), **measures(task.kind, data, predictions)}
    metric = chosen_by(task)[0]
    metric = OF_KIND[task.kind][0] if metric == "loss" else metric
    summary: dict[str, Any] = {
        "file": task.test,
        "sha256": digest(task.test),
        "n": len(data),
        "step": step,
        "metrics": finite(measured),
        "standard_error": _error(task.kind, metric, data.targets, predictions),
        "predictions": PREDICTIONS,
    }
    lines = [
        f"test set, {len(data):,} sequences, opened once, by the chosen weights: {_shown(measured)}"
        + _error_shown(summary["standard_error"])
    ]
    for name, columns in groups_of(task, data.classes).items():
        parts = np.asarray(data.targets)[:, columns], np.stack(predictions)[:, columns]
        found = of_outputs(*parts)
        error = _error(task.kind, metric, *parts)
        group = {"outputs": len(columns), "metrics": finite(found), "standard_error": error}
        summary.setdefault("groups", {})[name] = group
        of = f"{len(columns):,} of its {len(data.classes):,} outputs"
        lines.append(f"{name}, {of}: {_shown(found)}{_error_shown(error)}")
    return summary, lines


def _error(kind: str, metric: str, targets: Any, predictions: Sequence[Floats]) -> dict[str, float | None]:
    """The standard error of the metric that weights are chosen by."""
    parts = predictions if kind == "per_base" else np.stack([*predictions])
    return finite({metric: standard_error(kind, metric, targets, parts)})


def _shown(measured: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in measured.items())


def _error_shown(error: Mapping[str, float | None]) -> str:
    return "".join(f"; standard error of {name} {value:.4f}" for name, value in error.items() if value is not None)


def write_predictions(file: Path, kind: str, data: LabelledSet, predictions: Sequence[Floats]) -> None:
    """Write a table: a row a sequence with its name, its label and what was predicted. Raises OSError."""
    classes, targets = data.classes, data.targets
    several = kind in ("multilabel", "regression") and len(classes) > 1
    if kind == "classification":
        titles = ["name", "label", "predicted", *(f"probability_{name}" for name in classes)]
    elif kind == "per_base":
        titles = ["name", "labels", "predicted"]
    else:
        titles = [
            "name",
            *(f"{part}_{name}" if several else part for part in ("label", "predicted") for name in classes),
        ]
    rows = ["\t".join(titles)]
    for number, (name, found) in enumerate(zip(data.names, predictions, strict=True)):
        target = targets[number]
        if kind == "classification":
            cells = [classes[int(target)], classes[int(found.argmax())], *(f"{value:.6g}" for value in found)]
        elif kind == "per_base":
            separator = "" if all(len(each) == 1 for each in classes) else ","
            guess = separator.join(classes[int(best)] for best in found.argmax(-1))
            cells = [separator.join("." if at == UNLABELLED else classes[int(at)] for at in target), guess]
        else:
            label = np.atleast_1d(np.asarray(target, dtype=np.float64))
            cells = ["" if np.isnan(value) else f"{value:.6g}" for value in (*label, *found)]
        rows.append("\t".join([name, *cells]))
    write_whole(file, "\n".join(rows) + "\n")


def error_from(file: Path, kind: str, metric: str) -> float | None:
    """The standard error of a metric, from what `write_predictions` wrote of classes or numbers; None where it does not say."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            titles, *rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        table = {name: [row[at] for row in rows] for at, name in enumerate(titles)}
        if kind == "classification":
            given = [name for name in titles if name.startswith("probability_")]
            classes = {name.removeprefix("probability_"): at for at, name in enumerate(given)}
            targets = np.array([classes[name] for name in table["label"]])
        elif kind == "regression":
            given, targets = ["predicted"], np.array(table["label"], dtype=np.float64)
        else:
            return None
        predictions = np.array([table[name] for name in given], dtype=np.float64).T
        found = standard_error(kind, metric, targets, predictions)
    except (OSError, ValueError, KeyError, IndexError, csv.Error):
        return None
    return found if np.isfinite(found) else None
