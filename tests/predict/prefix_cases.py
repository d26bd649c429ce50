"""What the tests of the shared prefix run in every rank of a pool: the first argument is the rank's Compute."""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.parallel.devices import Compute
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.shared_prefix import EndFilters, Ends, SharedPrefix
from tests.distributed.cases import _layout
from tests.distributed.work import CONTEXT, Grid, lively_model
from tests.pieces import small_pieces


def hidden_states(
    compute: Compute, grid: Grid, config: ModelConfig, window_L: Tensor, jobs: list[tuple[list[int], Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """For each job, ends and where they begin: (B, S + 1, D) of the ends and of the reference, the same on every rank."""
    predictor = Predictor(lively_model(config), _layout(compute, grid, CONTEXT).exchange)
    found = []
    with small_pieces():
        kept_from = min(begin for begins, _ in jobs for begin in begins)
        prefix = SharedPrefix(predictor, window_L, kept_from, EndFilters(predictor))
        for begins, ends_BS in jobs:
            flat = prefix.score(begins, ends_BS, _flat, at_once=2)
            hidden, reference = flat.chunk(2, 1)
            shape = (len(begins), ends_BS.shape[1] + 1, config.width)
            found.append((hidden.reshape(shape), reference.reshape(shape)))
    return found


def _flat(ends: Ends) -> Tensor:
    return torch.cat((ends.hidden_BmD.flatten(1), ends.reference_BmD.flatten(1)), 1)
