"""A Task of whole sequences through the trainer's own engine, step, checkpoints and runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
