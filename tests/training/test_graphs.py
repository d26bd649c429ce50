"""A recorded micro step has the losses and gradients of one that is not, in every step, and is refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import MicroBatch
from hyena_ds.errors import UserError
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.training import graphs
from hyena_ds.training.graphs import GraphedForward, check_graphs
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, lively_model, run_config
from tests.training.graph_work import record_again, train_twice


def batch_of(length: int, seed: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, 11, (2, length + 1), generator=generator)
    return MicroBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.tensor([seed, seed + 9]))


def call_of(length: int, step: int, batch: MicroBatch) -> ForwardPass:
    return ForwardPass(Layout.whole(length), dropout=DropoutKey(5, step, batch.samples_B))


def passed(forward: Callable, objective: NextToken, length: int, step: int) -> tuple[float, torch.Tensor]:
    objective.zero_grad()
    batch = batch_of(length, step)
    loss, sums = forward(batch, call_of(length, step, batch))
    assert float(sums[0]) == 2 * length
    (3 * loss).backward()
    return float(loss), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.fixture()
def objective() -> NextToken:
    return NextToken(lively_model(run_config(Grid(1, 1), embedding_dropout=0.3).model))


def test_replays_take_the_batch_the_dropout_and_the_parameters_of_their_step(objective: NextToken) -> None:
    recordings = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        recordings.append(work)
        return record_again(work)

    graphed = GraphedForward(objective, record)
    for step, length in enumerate((32, 32, 16, 32)):
        loss, gradients = passed(graphed, objective, length, step)
        wanted_loss, wanted = passed(objective.forward, objective, length, step)
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        assert float((gradients - wanted).norm() / wanted.norm()) < 1e-6
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.mul_(0.9)
    assert len(recordings) == 2  # one for each length, whatever the step
    for parameter in objective.parameters():
        parameter.data = parameter.data.clone()
    passed(graphed, objective, 32, 9)
    assert len(recordings) == 3  # they had moved


def test_what_cannot_be_recorded_runs_as_it_is(objective: NextToken, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("recorded")

    graphed = GraphedForward(objective, refuse)
    batch = batch_of(32, 1)
    call = call_of(32, 1, batch)
    wanted = float(objective.forward(batch, call)[0])
    with torch.no_grad():
        assert float(graphed(batch, call)[0]) == wanted
    assert float(graphed(batch, replace(call, watch=lambda r, u: None))[0]) == wanted
    monkeypatch.setattr(graphs, "LONGEST", 31)
    assert float(graphed(batch, call)[0]) == wanted
    monkeypatch.setattr(graphs, "LONGEST", 32)
    with pytest.raises(AssertionError, match="recorded"):
        graphed(batch, call)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_ranks_train_alike_with_and_without_recordings(zero_stage: int, ranks: Callable[[int], Pool]) -> None:
    for plain, recorded in ranks(2).run(train_twice, zero_stage=zero_stage, steps=4):
        assert recorded == [pytest.approx(row, rel=1e-5) for row in plain]
        assert len({loss for loss, _ in plain}) == 4


def refusal(config: RunConfig, device: str) -> str:
    with pytest.raises(UserError) as caught:
        check_graphs(config, torch.device(device))
    return str(caught.value)


def test_a_cpu_and_sharded_parameters_are_refused() -> None:
    wanted = run_config(Grid(1, 1), cuda_graphs=True)
    assert refusal(wanted, "cpu").startswith("cuda_graphs: found a run on the CPU, wanted one on CUDA devices")
    assert "cuda_graphs: found zero_stage 3" in refusal(replace(wanted, zero_stage=3), "cuda:0")
    check_graphs(wanted, torch.device("cuda", 0))
    check_graphs(run_config(Grid(1, 1)), torch.device("cpu"))
