"""Buffers that published files carry and that follow from the model's shape: positions, times, rates of decay.

They are computed here. A file whose buffers say something else was made with another filter, which its parameters alone
would not give back: it is refused.

E positional features, L maximum context, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.model.filter import FilterShape, decay_rates, positional_features
from hyena_ds.weights.layouts import Found

_TOLERANCE = 5e-3
"""Relative to the largest: what bfloat16 leaves of them, and more than float32 code of others differs by."""
_CHUNK = 1 << 16


def check_derived(found: Found, config: ModelConfig) -> None:
    """Raise UserError where a buffer of the file is not what follows from the model's shape."""
    limit, features = config.maximum_context, config.filter_features
    shape = FilterShape(config.width, limit, config.time_context, features, config.filter_shift)
    for number in range(config.layers):
        begin = f"backbone.layers.{number}.mixer.filter_fn."
        for name, wanted in (
            ("pos_emb.z", (1, limit, features)),
            ("pos_emb.t", (1, limit, 1)),
            ("modulation.deltas", (1, 1, config.width)),
        ):
            tensor = found.tensors.get(begin + name)
            if tensor is None:
                continue
            called = found.called(begin + name)
            if tensor.shape != wanted:
                raise UserError(f"{found.path}: '{called}' has shape {tensor.shape}, wanted {wanted}")
            buffer = found.tensor(begin + name)
            difference = _of_decay(buffer) if name.endswith("deltas") else _of_positions(buffer[0], shape)
            if not difference <= _TOLERANCE:
                raise UserError(
                    f"{found.path}: '{called}' differs by {difference:.3g} from what follows from the model's shape: its "
                    "filter has other positions or decay, and cannot be represented"
                )


def _of_decay(deltas_11D: Tensor) -> float:
    wanted_D = decay_rates(deltas_11D.numel(), torch.device("cpu"))
    return float(((deltas_11D.flatten().abs() - wanted_D).abs() / wanted_D.max()).max())


def _of_positions(z_LE: Tensor, shape: FilterShape) -> float:
    """Largest difference over all positions, a chunk of them at a time; the times alone are the first feature."""
    largest = 0.0
    for start in range(0, z_LE.shape[0], _CHUNK):
        piece_cE = z_LE[start : start + _CHUNK]
        wanted_Ec = positional_features(shape, start, piece_cE.shape[0], torch.device("cpu"))
        difference = float((piece_cE.t() - wanted_Ec[: piece_cE.shape[1]]).abs().max())
        if not difference <= largest:  # not a number is a difference too
            largest = difference
    return largest
