"""Losses, gradients and predictions of every kind of labelled task, on grids, against one process in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig
from hyena_ds.config.task import HeadConfig, TaskConfig
from hyena_ds.data.loader import Slice
from hyena_ds.genome.tokenizer import encode
from hyena_ds.labelled import read_labelled
from hyena_ds.labelled.sets import KINDS
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.pooling import POOLS
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.tasks.outcomes import outputs_of
from tests.distributed.pool import Pool
from tests.distributed.work import TOLERANCE, Grid, Trained, relative_error, run_config, series_error, worst_error
from tests.model.plain import plain_hidden
from tests.tasks import finetuning_cases
from tests.tasks.labels import made, write_rows

Ranks = Callable[[int], Pool]
GRIDS = [Grid(1, 1), Grid(2, 1), Grid(1, 2), Grid(2, 2)]
STEPS, RATE = 2, 5e-4
HEADS = [HeadConfig("mean"), HeadConfig("max", hidden=7), HeadConfig("last"), HeadConfig("first")]
COMBINATIONS = [
    (kind, grid, (at + number) % 4, HEADS[(at + 2 * number) % 4])
    for (number, kind), (at, grid) in product(enumerate(KINDS), enumerate(GRIDS))
]
"""Every kind on every grid; every head and ZeRO stage with each on some."""


def make_config(folder: Path, kind: str, grid: Grid, zero_stage: int, head: HeadConfig) -> RunConfig:
    train = write_rows(folder / "train.csv", made(kind, 21))
    valid = write_rows(folder / "valid.csv", made(kind, 7, seed=2))
    weights = "none" if kind == "regression" else "balanced"
    task = TaskConfig(
        kind=kind,  # type: ignore[arg-type]
        train=str(train),
        valid=str(valid),
        head=head,
        reverse_complement=True,
        class_weights=weights,  # type: ignore[arg-type]
        buckets=(12, 20, 28),
    )
    stage = StageConfig(32, STEPS, 2, global_batch=8, sequence_parallel=grid.sp)
    return replace(run_config(grid, zero_stage=zero_stage), data=DataConfig(), task=task, stages=(stage,))


class Plain:
    """The loss of one sequence after the other, each alone and without padding."""

    def __init__(self, config: RunConfig):
        assert config.task is not None
        self.config, self.task, self.kind = config, config.task, config.task.kind
        self.train = read_labelled(config.task.train, self.kind)
        self.valid = read_labelled(config.task.valid, self.kind, classes=self.train.classes)
        targets = np.concatenate(self.train.targets) if self.kind == "per_base" else np.asarray(self.train.targets)
        if self.kind == "multilabel":
            self.weights = (targets == 0).sum(0) / (targets == 1).sum(0)
            assert max(self.weights) > 1.2, "nothing is to be balanced"
        elif config.task.class_weights == "balanced":
            counts = np.array([(targets == label).sum() for label in range(len(self.train.classes))])
            self.weights = counts.sum() / (len(counts) * counts)
        else:
            self.mean, self.deviation = targets.mean(0), targets.std(0)

    def output(self, p: dict[str, Tensor], text: str) -> Tensor:
        """(K,), or (L, K) of bases."""
        ids = torch.from_numpy(encode(text).astype(np.int64)).unsqueeze(0)
        hidden_LD = plain_hidden(p, self.config.model, F.embedding(ids, p["backbone.embedding.weight"]))[0]
        pool = "none" if self.kind == "per_base" else self.task.head.pool
        state = {"none": hidden_LD, "mean": hidden_LD.mean(0), "last": hidden_LD[-1], "first": hidden_LD[0]}.get(pool)
        if state is None:
            state = torch.stack([channel[int(channel.argmax())] for channel in hidden_LD.T])
        if self.task.head.hidden:
            state = F.linear(state, p["head.hidden.weight"], p["head.hidden.bias"])
            state = F.gelu(state, approximate="tanh")
        return F.linear(state, p["head.output.weight"], p["head.output.bias"])

    def loss(self, output: Tensor, target: Any, weighed: bool) -> tuple[Tensor, float]:
        """(sum of the losses, sum of their weights)."""
        total, count = output.sum() * 0, 0.0
        if self.kind in ("classification", "per_base"):
            for logits, label in zip(output.view(-1, output.shape[-1]), np.atleast_1d(target).tolist(), strict=True):
                if label >= 0:
                    weight = float(self.weights[label]) if weighed else 1.0
                    total, count = total - weight * logits.log_softmax(0)[label], count + weight
            return total, count
        for k, (value, wanted) in enumerate(zip(output, np.atleast_1d(target).tolist(), strict=True)):
            if wanted == wanted:
                weight = 1.0
                if self.kind == "multilabel":
                    each = -F.logsigmoid(value if wanted else -value)
                    weight = float(self.weights[k]) if weighed and wanted else 1.0
                else:
                    each = (value - (wanted - float(self.mean)) / float(self.deviation)) ** 2
                total, count = total + weight * each, count + weight
        return total, count


def other_strand(text: str) -> str:
    return text.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def reference(config: RunConfig, plain: Plain) -> tuple[Trained, list[Tensor]]:
    task = LabelledTask(config)
    objective = finetuning_cases.lively_objective(task, config).double()
    parameters, trained = dict(objective.named_parameters()), Trained()
    for step in range(STEPS):
        objective.zero_grad()
        chosen = task.samples(step)
        assert {reading.reverse for reading in chosen} == {False, True}
        parts = []
        for reading in chosen:
            text, target = plain.train.sequences[reading.number], plain.train.targets[reading.number]
            if reading.reverse:
                text, target = other_strand(text), target[::-1] if plain.kind == "per_base" else target
            parts.append(plain.loss(plain.output(parameters, text), target, weighed=True))
        loss = sum(each for each, _ in parts) / sum(count for _, count in parts)
        assert isinstance(loss, Tensor)
        loss.backward()
        if not trained.losses:
            trained.first_gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        trained.losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= RATE * parameter.grad
    trained.parameters = {name: p.detach().clone() for name, p in parameters.items()}
    outputs, losses = [], []
    with torch.no_grad():
        for reading in task.held_out(32):
            text, target = plain.valid.sequences[reading.number], plain.valid.targets[reading.number]
            if reading.reverse:
                text, target = other_strand(text), target[::-1] if plain.kind == "per_base" else target
            outputs.append(plain.output(parameters, text))
            losses.append(plain.loss(outputs[-1], target, weighed=False))
    trained.norms.append(float(sum(each for each, _ in losses) / sum(count for _, count in losses)))
    return trained, outputs


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "grid", "stage", "head"), COMBINATIONS, ids=str)
def test_a_labelled_step_and_its_predictions_are_those_of_every_sequence_alone_in_one_process(
    ranks: Ranks, tmp_path: Path, kind: str, grid: Grid, stage: int, head: HeadConfig
) -> None:
    config = make_config(tmp_path, kind, grid, stage, head)
    wanted, outputs = reference(config, Plain(config))
    for found, predictions, lengths in ranks(grid.ranks).run(
        finetuning_cases.train, config=config, steps=STEPS, rate=RATE
    ):
        assert len(set(lengths)) > 1, "all micro steps are as long"
        assert series_error(found.losses, wanted.losses) <= TOLERANCE, (found.losses, wanted.losses)
        assert series_error(found.norms, wanted.norms) <= TOLERANCE, "loss of the validation"
        error, name = worst_error(found.first_gradients, wanted.first_gradients)
        assert error <= TOLERANCE, f"gradient of {name}: {error:.1e}"
        error, name = worst_error(found.parameters, wanted.parameters)
        assert error <= TOLERANCE, f"parameter {name}: {error:.1e}"
        here = [got[: len(want)] if kind == "per_base" else got for got, want in zip(predictions, outputs, strict=True)]
        everything = torch.from_numpy(np.concatenate(here))
        assert relative_error(everything, torch.cat(outputs)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pool"), [*product(["classification"], POOLS), ("per_base", "mean")])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_padding_leaks_into_an_output(ranks: Ranks, tmp_path: Path, grid: Grid, kind: str, pool: str) -> None:
    config = make_config(tmp_path, kind, grid, 1, HeadConfig(pool))  # type: ignore[arg-type]
    config = replace(config, model=replace(config.model, maximum_context=1024))
    lengths = [32, 64, 200, 1024]
    for short, *longer in ranks(grid.ranks).run(finetuning_cases.padded, config=config, lengths=lengths):
        for length, found in zip(lengths[1:], longer, strict=True):
            assert np.abs(found - short).max() <= 1e-6 * np.abs(short).max(), length


def test_the_mean_of_both_strands_is_the_same_for_a_sequence_and_its_reverse_complement(tmp_path: Path) -> None:
    for kind in ("classification", "per_base"):
        config = make_config(tmp_path, kind, Grid(1, 1), 0, HeadConfig())
        rows = made(kind, 5, seed=4)
        reverse = [(other_strand(text), label[::-1] if kind == "per_base" else label) for text, label in rows]
        found = []
        for part in (rows, reverse):
            write_rows(tmp_path / "valid.csv", part)
            task = LabelledTask(config)
            objective = finetuning_cases.lively_objective(task, config)
            samples = task.held_out(32)
            assert len(samples) == 10
            batch = task.read(samples, [*range(10)], 32, Slice(0, 0, 32))
            with torch.no_grad():
                outputs = objective(batch, ForwardPass(Layout.whole(32)))[2].numpy()
            one_strand = [out for each, out in zip(samples, outputs, strict=True) if not each.reverse]
            found.append((outputs_of(task.sets.valid, samples, [*outputs]), np.stack(one_strand)))
        for one, other in zip(found[0][0], found[1][0], strict=True):
            assert np.abs(one - (other[::-1] if kind == "per_base" else other)).max() <= 1e-6 * np.abs(one).max()
        assert np.abs(found[0][1] - found[1][1]).max() > 1e-2, "the strands do not differ"
