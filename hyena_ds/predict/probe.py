"""What tells labels from a frozen backbone's pooled states: a linear probe, or boosted trees (trees.py).

    sequences --Predictor, on both strands if asked--> states_nD --scaled--> logistic or ridge regression, for each strength C
                                                       states_nD --> boosted trees, round by round
    --the best on the validation split--> head --the test set, once--> RUN/{config.yaml, summary.json, weights.safetensors, ...}

The run's directory is that of any other, but for checkpoints: there is one set of weights, the backbone with the head; trees are
beside it, in trees.json.

n sequences, D width, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_ds.checkpoints.manifest import WEIGHTS
from hyena_ds.checkpoints.weights import check_same_shape, read_aloud
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import need
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.tokenizer import PAD
from hyena_ds.labelled import LabelledSet
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.pooling import POOLS
from hyena_ds.monitoring.metrics import finite
from hyena_ds.parallel.devices import compute_alone
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.trees import Trees, grow
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runs.trained_on import TRAINING, fine_tuned
from hyena_ds.tasks.labelled_sets import Sets, check_lengths, chosen_by, listed, read_sets, read_test
from hyena_ds.tasks.outcomes import mean_loss, measures, outputs_of, predictions_of, readings, record_test
from hyena_ds.weights.heads import HEAD, TREES, head_header
from hyena_ds.weights.published import published_tensors
from hyena_ds.weights.tensor_file import safetensors_chunks

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""C of the regressions, the inverse of their regularisation; a ridge regression's alpha is 1 / C."""
_TOKENS = 1 << 16
"""Tokens of a forward pass."""
_ITERATIONS = 2000
Array = NDArray[Any]


@dataclass(frozen=True)
class _Fitted:
    """A regression of one strength: outputs_nK = states_nD @ weight_KD.T + bias_K."""

    chosen: Mapping[str, float]
    """Its strength C."""
    weight_KD: Array
    bias_K: Array

    def outputs(self, states_nD: Array) -> Array:
        """(n, D) -> (n, K), float64."""
        found: Array = states_nD.astype(np.float64) @ self.weight_KD.T + self.bias_K
        return found


def probe(config: RunConfig) -> int:
    """Fit, choose and test in this process; the exit code. Raises UserError."""
    task = config.task
    assert task is not None
    need("xgboost" if task.frozen == "trees" else "sklearn", "predict")
    directory = RunDirectory(config)
    directory.check(config)
    if directory.is_complete():
        print(f"The run in {directory.path} is complete: {directory.summary} holds its results.")
        return 0
    sets, shape = read_sets(config, config.seed), config.model
    for part in (sets.train, sets.valid):
        check_lengths(part, shape.maximum_context, "model.maximum_context")
    files = listed(task)
    directory.compare_data(None, files)
    with directory.held(0):
        directory.create(config, files)
        model = _model(config)
        predictor = Predictor(model.to(compute_alone().device))
        train, valid = (_states(predictor, part, task) for part in (sets.train, sets.valid))
        best = _best(task, sets, config.seed, train, valid)
        _, quality = _judged(task, sets, [*best.outputs(valid)])
        summary: dict[str, Any] = {"step": 0, "context_length": sets.longest, **best.chosen}
        summary |= finite({f"validation_{name}": value for name, value in quality.items()})
        summary |= {"selected_by": chosen_by(task)[0], "classes": sets.train.classes}
        said = ", ".join(f"{name} {value:g}" for name, value in best.chosen.items())
        print(f"validation, {said}: " + ", ".join(f"{name} {value:.4f}" for name, value in quality.items()))
        _write_weights(directory.path, config, model, best, sets)
        if task.test is not None:
            data = read_test(task, sets.train.classes)
            check_lengths(data, shape.maximum_context, "model.maximum_context")
            outputs = [*best.outputs(_states(predictor, data, task))]
            summary["test"], lines = record_test(task, data, outputs, _unit(sets), 0, directory.path)
            print("\n".join(lines))
        training = fine_tuned(config.initialize_from, files, sets.longest, directory.path.absolute())
        weights = directory.path / WEIGHTS
        write_whole(directory.path / TRAINING, training.text(WEIGHTS, sha256_of(weights)))
        directory.write_summary(summary)
    print(f"run: {directory.path}   weights: {weights}")
    return 0


def _model(config: RunConfig) -> HyenaDNA:
    if config.initialize_from is None:
        return build_model(config.model, config.seed)
    weights = read_aloud(config.initialize_from, config.model.filter_shift)
    check_same_shape(weights.path, weights.config, config.model)
    model = build_model(config.model, config.seed)
    model.load_state_dict(weights.parameters)
    return model


def _states(predictor: Predictor, data: LabelledSet, task: TaskConfig) -> Array:
    """(n, D) pooled states, the mean of both strands' if the task reads both; each of its own sequence alone."""
    read = readings(data, task.reverse_complement)
    found: list[Array] = []
    while len(found) < len(read):
        longest = read[len(found)].length
        batch = read[len(found) : len(found) + max(1, _TOKENS // longest)]
        ids_BL = torch.full((len(batch), longest), PAD)
        for row, reading in enumerate(batch):
            ids_BL[row, : reading.length] = torch.from_numpy(reading.tokens.astype(np.int64))
        lengths = [reading.length for reading in batch]
        found += [*predictor.pooled(predictor.hidden(ids_BL), lengths, POOLS[task.head.pool]).cpu().numpy()]
    return np.stack(outputs_of(data, read, found))


def _best(task: TaskConfig, sets: Sets, seed: int, train_nD: Array, valid_nD: Array) -> _Fitted | Trees:
    """What is best on the validation split: trees, or of the regressions, of equals the most regularised."""
    if task.frozen == "trees":
        return grow(sets, seed, train_nD, valid_nD, lambda outputs: _judged(task, sets, outputs)[0])
    fitted = [_fitted(task, sets, train_nD, strength) for strength in STRENGTHS]
    return max(fitted, key=lambda one: _judged(task, sets, [*one.outputs(valid_nD)])[0])


def _judged(task: TaskConfig, sets: Sets, outputs: Sequence[Array]) -> tuple[float, dict[str, float]]:
    """(the higher, the better, by the metric that chooses; all measures) of outputs of the validation split."""
    metric, lower = chosen_by(task)
    predictions = [predictions_of(task.kind, each, _unit(sets)) for each in outputs]
    loss = mean_loss(task.kind, sets.valid, outputs, _unit(sets))
    quality = {"loss": loss, **measures(task.kind, sets.valid, predictions)}
    value = -quality[metric] if lower else quality[metric]
    return value if value == value else -np.inf, quality


def _fitted(task: TaskConfig, sets: Sets, states_nD: Array, strength: float) -> _Fitted:
    from sklearn.linear_model import LogisticRegression, Ridge

    middle_D, spread_D = states_nD.mean(0), states_nD.std(0)
    spread_D = np.where(spread_D > 0, spread_D, 1.0)
    x_nD, targets = (states_nD - middle_D) / spread_D, np.asarray(sets.train.targets)
    balance = "balanced" if task.class_weights == "balanced" else None
    if task.kind == "regression":
        y_nK = (targets.reshape(len(x_nD), -1) - sets.scale[0]) / sets.scale[1]
        known = ~np.isnan(y_nK).any(1)
        ridge = Ridge(alpha=1 / strength).fit(x_nD[known], y_nK[known])
        weight_KD, bias_K = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
    elif task.kind == "classification":
        logistic = LogisticRegression(C=strength, max_iter=_ITERATIONS, class_weight=balance).fit(x_nD, targets)
        weight_KD, bias_K = _all_classes(logistic.coef_, logistic.intercept_, logistic.classes_, sets.outputs)
    else:
        rows = [_one_output(x_nD, targets[:, output], strength, balance) for output in range(sets.outputs)]
        weight_KD, bias_K = np.stack([weight for weight, _ in rows]), np.array([bias for _, bias in rows])
    return _Fitted({"strength": strength}, weight_KD / spread_D, bias_K - weight_KD @ (middle_D / spread_D))


def _all_classes(weight: Array, bias: Array, classes: Array, outputs: int) -> tuple[Array, Array]:
    """A row for every class: of two, half of the one row up and down; one that is not there is never predicted."""
    if len(classes) == 2:
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    weight_KD, bias_K = np.zeros((outputs, weight.shape[1])), np.full(outputs, -1e4)
    weight_KD[classes], bias_K[classes] = weight, bias
    return weight_KD, bias_K


def _one_output(x_nD: Array, target_n: Array, strength: float, balance: str | None) -> tuple[Array, float]:
    """The regression of one output of several; of one that never varies, its share as it is."""
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(target_n.astype(np.float64))
    there = target_n[known].astype(np.int64)
    if len(set(there.tolist())) < 2:
        share = (there.sum() + 0.5) / (len(there) + 1)
        return np.zeros(x_nD.shape[1]), float(np.log(share / (1 - share)))
    found = LogisticRegression(C=strength, max_iter=_ITERATIONS, class_weight=balance).fit(x_nD[known], there)
    return found.coef_[0], float(found.intercept_[0])


def _unit(sets: Sets) -> tuple[Array, Array] | None:
    return sets.scale if sets.task.kind == "regression" else None


def _write_weights(run: Path, config: RunConfig, model: HyenaDNA, best: _Fitted | Trees, sets: Sets) -> None:
    tensors, header = published_tensors(
        config.model, {name: each.data.cpu() for name, each in model.named_parameters()}
    )
    unit, trees = _unit(sets), None
    scale: tuple[Sequence[float], Sequence[float]] | None = (
        None if unit is None else (unit[0].tolist(), unit[1].tolist())
    )
    if isinstance(best, Trees):
        write_whole(run / TREES, best.text())
        trees = TREES
    else:
        tensors = tensors | {
            f"{HEAD}.output.weight": torch.from_numpy(best.weight_KD).float(),
            f"{HEAD}.output.bias": torch.from_numpy(best.bias_K).float(),
        }
    header |= head_header(sets.task.kind, sets.task.head.pool, sets.train.classes, scale, trees)
    chunks = safetensors_chunks(tensors, header)
    write_whole(run / WEIGHTS, b"".join(bytes(chunk) for chunk in chunks))
