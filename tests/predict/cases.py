"""Functions that run in every rank of a pool: the first argument is the rank's Compute."""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel.devices import Compute
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.prefill import prefill
from tests.distributed.cases import _layout
from tests.distributed.work import CONTEXT, Grid, lively_model


def logits(compute: Compute, grid: Grid, config: ModelConfig, batches: list[Tensor]) -> list[Tensor]:
    """Whole logits of every batch, by one Predictor."""
    predictor = Predictor(lively_model(config), _layout(compute, grid, CONTEXT).exchange)
    return [predictor.whole(predictor.logits(ids_BL), ids_BL.shape[1]) for ids_BL in batches]


def refused_length(compute: Compute, grid: Grid, config: ModelConfig, length: int) -> str:
    """What is said of a sequence of `length` tokens."""
    predictor = Predictor(lively_model(config), _layout(compute, grid, CONTEXT).exchange)
    try:
        predictor.logits(torch.full((1, length), 7))
    except UserError as error:
        return str(error)
    return "nothing"


def refused(compute: Compute, grid: Grid, config: ModelConfig) -> str:
    """What is said of a model that these ranks cannot share."""
    try:
        Predictor(lively_model(config), _layout(compute, grid, CONTEXT).exchange)
    except UserError as error:
        return str(error)
    return "nothing"


def prefix(
    compute: Compute, grid: Grid, config: ModelConfig, ids_L: Tensor, tokens: int, owner: int
) -> tuple[Tensor, ...] | None:
    """What a prompt leaves, on its owner."""
    predictor = Predictor(lively_model(config), _layout(compute, grid, CONTEXT).exchange)
    found = prefill(predictor, ids_L, tokens, owner)
    return None if found is None else tuple(found)
