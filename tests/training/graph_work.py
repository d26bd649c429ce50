"""Runs in every rank of a pool: training with recorded micro steps, where a recording is the same work done again."""

from __future__ import annotations

from collections.abc import Callable

from hyena_ds.parallel.devices import Compute
from hyena_ds.training import graphs
from hyena_ds.training.step import train_step
from tests.distributed.cases import _call, _engine
from tests.distributed.work import CONTEXT, SEED, Grid, lively_model, make_batch, run_config


def record_again(work: Callable[[], None]) -> Callable[[], None]:
    """In the place of a CUDA graph: what a replay would do, on the same tensors."""
    work()
    return work


def train_twice(compute: Compute, zero_stage: int, steps: int) -> list[list[tuple[float, float]]]:
    """(loss, gradient norm) of every step: as it is, and recorded. The last step has shorter sequences."""
    graphs.record_on_device = record_again
    found = []
    for recorded in (False, True):
        grid = Grid(compute.ranks, 1)
        config = run_config(grid, zero_stage=zero_stage, embedding_dropout=0.3, cuda_graphs=recorded)
        rows = []
        with _engine(compute, config, lively_model(config.model), None) as engine:
            for step in range(steps):
                context = CONTEXT if step < steps - 1 else CONTEXT // 2
                batch = make_batch(100 + step, 8, 2, context).on_rank(step, grid, compute.rank)
                result = train_step(engine, batch, _call(compute, grid, context, config), compute, SEED, 1e-3)
                rows.append((result.loss, result.gradient_norm))
        found.append(rows)
    return found
