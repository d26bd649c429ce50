"""A Task of whole sequences through the trainer's own engine, step, checkpoints and runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from hyena_ds.model.pooling import POOLINGS, Pooling
from tests.distributed.pool import Pool
from tests.distributed.work import (
    CONTEXT,
    TOLERANCE,
    Grid,
    Trained,
    lively_model,
    relative_error,
    run_config,
    series_error,
    worst_error,
)
from tests.model.plain import plain_hidden
from tests.tasks import cases
from tests.tasks.labelled import NOTHING, PROMPT, Labelled
from tests.training.runs import ends_of_ranks, rows, write_config

Ranks = Callable[[int], Pool]
pytestmark = pytest.mark.slow
GRIDS = [Grid(1, 1), Grid(2, 1), Grid(1, 2), Grid(2, 2), Grid(1, 4), Grid(4, 1)]
STAGES = [0, 1, 2, 3]
STEPS, RATE = 3, 0.05
FROZEN: list[tuple[str, ...]] = [(), ("backbone.embedding", "backbone.blocks.0."), ("backbone.",)]
COMBINATIONS = [
    (grid, stage, POOLINGS[(number + stage) % len(POOLINGS)], FROZEN[(number + stage) % len(FROZEN)])
    for (number, grid), stage in product(enumerate(GRIDS), STAGES)
]
"""Every grid at every ZeRO stage; every pooling and every set of frozen parameters on many of them."""


def plain_pool(hidden_BLD: Tensor, pooling: Pooling, lengths_B: Tensor) -> Tensor:
    """One sequence after the other; nothing in common with hyena_ds."""
    states = []
    for row, length in enumerate(lengths_B.tolist()):
        here_LD = hidden_BLD[row, :length]
        state = {"mean": here_LD.mean(0), "first": here_LD[0], "last": here_LD[-1]}
        states.append(torch.stack([c[int(c.argmax())] for c in here_LD.T]) if pooling == "maximum" else state[pooling])
    return torch.stack(states)


def reference(config: Any, pooling: Pooling, frozen: tuple[str, ...]) -> Trained:
    """The same training on one process in float64, without the trainer's model, engine or step."""
    objective = Labelled(lively_model(config.model), pooling, frozen).double()
    parameters = dict(objective.named_parameters())
    trained = Trained()
    for step in range(STEPS):
        objective.zero_grad()
        batch = cases.step_batch(step, Grid(1, 1), 0)
        losses, right = [], 0
        for micro in batch.micro_batches:
            assert micro.lengths_B is not None
            embedded_BLD = F.embedding(micro.token_ids_Bl, parameters["backbone.embedding.weight"])
            embedded_BLD = torch.cat((embedded_BLD[:, :PROMPT] + parameters["prompt"], embedded_BLD[:, PROMPT:]), 1)
            state = plain_pool(plain_hidden(parameters, config.model, embedded_BLD), pooling, micro.lengths_B)
            logits = F.linear(state, parameters["head.weight"], parameters["head.bias"])
            losses.append(F.cross_entropy(logits, micro.targets, ignore_index=NOTHING, reduction="sum"))
            right += int(((logits.argmax(1) == micro.targets) & (micro.targets != NOTHING)).sum())
        loss = sum(losses) / 6  # of eight sequences two have no label
        assert isinstance(loss, Tensor)
        loss.backward()
        if not trained.losses:
            trained.first_gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        trained.losses.append(float(loss.detach()))
        trained.norms.append(right / 6)
        with torch.no_grad():
            for parameter in parameters.values():
                if parameter.requires_grad:
                    parameter -= RATE * parameter.grad
    trained.parameters = {name: p.detach().clone() for name, p in parameters.items()}
    return trained


@pytest.mark.parametrize(("grid", "stage", "pooling", "frozen"), COMBINATIONS, ids=str)
def test_the_gradient_of_a_loss_of_whole_sequences_is_that_of_one_process(
    ranks: Ranks, grid: Grid, stage: int, pooling: Pooling, frozen: tuple[str, ...]
) -> None:
    config = run_config(grid, zero_stage=stage)
    wanted = reference(config, pooling, frozen)
    arguments = {"grid": grid, "config": config, "pooling": pooling, "frozen": frozen, "steps": STEPS, "rate": RATE}
    for found in ranks(grid.ranks).run(cases.train, **arguments):
        assert series_error(found.losses, wanted.losses) <= TOLERANCE, (found.losses, wanted.losses)
        assert found.norms == wanted.norms
        error, name = worst_error(found.first_gradients, wanted.first_gradients)
        assert error <= TOLERANCE, f"gradient of {name}: {error:.1e}"
        error, name = worst_error(found.parameters, wanted.parameters)
        assert error <= TOLERANCE, f"parameter {name}: {error:.1e}"


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 2), Grid(2, 2), Grid(1, 4)], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooled_state_and_its_gradient_are_those_of_the_whole_sequence(
    ranks: Ranks, pooling: Pooling, grid: Grid
) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_BLD = torch.randint(-3, 4, (5, CONTEXT, 6), generator=generator).float()  # equal values lie far apart
    lengths_B = torch.tensor([CONTEXT, 1, CONTEXT // 4, CONTEXT // 4 + 1, 7])
    whole = hidden_BLD.double().requires_grad_()
    state_BD = plain_pool(whole, pooling, lengths_B)
    (state_BD * torch.arange(1.0, 1.0 + state_BD.numel()).view_as(state_BD)).sum().backward()
    assert whole.grad is not None
    found = ranks(grid.ranks).run(cases.pooled, grid=grid, hidden_BLD=hidden_BLD, lengths_B=lengths_B, pooling=pooling)
    for rank, (state, gradient) in enumerate(found):
        assert relative_error(state, state_BD.detach()) <= 1e-6
        first = grid.topology.index(rank) * CONTEXT // grid.sp
        wanted = whole.grad[:, first : first + CONTEXT // grid.sp]
        assert torch.allclose(gradient.double(), wanted, rtol=1e-6, atol=1e-6)


def _weights(run: Path, step: int) -> dict[str, Tensor]:
    with safe_open(run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def test_a_labelled_run_learns_is_killed_and_resumes_on_another_grid_with_its_head(tmp_path: Path) -> None:
    stage = {"context_length": 32, "steps": 30, "global_batch": 8, "micro_batch_size": 2}
    changes: dict[str, Any] = {
        "model": {"width": 16, "layers": 1, "maximum_context": 64, "residual_dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "validation": {"every_steps": 10, "windows": 31},
        "checkpoint": {"every_steps": 6, "keep_last": 9},
        "local_ranks": None,
    }
    config = write_config(tmp_path / "config.yaml", tmp_path, stages=[stage], **changes)
    cut = "stages.0.sequence_parallel=2"

    def train(ranks: int, *overrides: str, **environment: str) -> list[tuple[int, str]]:
        command = ["train", str(config), *overrides]
        return ends_of_ranks("tests.tasks.labelled_rank", command, ranks, **environment)

    whole, name = train(2, "name=whole"), tmp_path / "runs" / "whole"
    assert [code for code, _ in whole] == [0, 0], whole[0][1]
    assert "validation loss" in whole[0][1] and "nats a sequence, accuracy" in whole[0][1]
    summary = json.loads((name / "summary.json").read_text())
    assert summary["chance"] == pytest.approx(1 / 3) and summary["validation_accuracy"] > 0.7, summary
    curves = EventAccumulator(str(name / "tensorboard")).Reload().Tags()["scalars"]
    assert {"train/accuracy", "by_stage/0_context_32/accuracy", "validation/accuracy"} <= set(curves)
    trained = [row for row in rows(name) if "validation_loss" not in row]
    assert all(0 <= row["accuracy"] <= 1 and row["gradient_norm"] > 0 for row in trained)

    dead = train(2, "name=killed", KILL_STEP="14", KILL_RANK="1")
    assert -signal.SIGKILL in [code for code, _ in dead]
    resumed = train(2, "name=killed", cut)
    assert [code for code, _ in resumed] == [0, 0], resumed[0][1]
    assert "resuming after step 12" in resumed[0][1]
    for found, wanted in zip(rows(tmp_path / "runs" / "killed"), rows(name), strict=True):
        assert found["step"] == wanted["step"]
        for column in {"loss", "validation_loss", "accuracy"} & wanted.keys():
            assert found[column] == pytest.approx(wanted[column], rel=2e-4), found
    ends = [_weights(tmp_path / "runs" / run, 30) for run in ("whole", "killed")]
    assert ends[0]["head.weight"].shape == (3, 16)
    assert max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0]) < 1e-3
    frozen = {key for key in ends[0] if ".fc1." in key}
    assert frozen and all(torch.equal(ends[0][key], _weights(name, 6)[key]) for key in frozen), "what is frozen moved"


@pytest.mark.parametrize("stage", STAGES)
def test_a_head_and_frozen_parameters_come_back_bit_for_bit_at_another_world_and_zero_stage(
    ranks: Ranks, tmp_path: Path, stage: int
) -> None:
    other = (stage + 1) % 4
    saved = ranks(2).run(cases.saved, directory=tmp_path / "two", zero_stage=stage, load=None)
    first = tmp_path / "two" / "step-00000002"
    ranks(4).run(cases.saved, directory=tmp_path / "four", zero_stage=other, load=first)
    second = tmp_path / "four" / "step-00000002"
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()
    found = [cases.whole_state(checkpoint) for checkpoint in (first, second)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert {"exp_avg/head.weight", "exp_avg/prompt"} <= found[
        0
    ].keys() and "exp_avg/backbone.embedding.weight" not in found[0]
    assert saved[0] == [2, 2]
