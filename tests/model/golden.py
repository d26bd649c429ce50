"""Tensors recorded from the published model code, and how closely ours must agree."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from hyena_ds.weights.published import published_names
from tests.paths import GOLDEN

CASES = ("d32_l2", "d48_l3")
SHIFTS = (0.0, 0.05)
TOLERANCE = 1e-5
"""Largest error allowed, relative to the largest element (max norm)."""


def weights_path(case: str) -> str:
    return str(GOLDEN / f"{case}.weights.safetensors")


def expected(case: str, shift: float) -> dict[str, Tensor]:
    """`hidden`, `logits`, `loss`, `filter0`, `grad/<published key without backbone.>`, and `token_ids`."""
    tensors = load_file(GOLDEN / f"{case}.expected.safetensors")
    prefix = f"shift{shift}/"
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {**chosen, "token_ids": tensors["token_ids"]}


def gradient_name(ours: str, layers: int) -> str:
    return "grad/" + published_names(layers)[ours].removeprefix("backbone.")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|, in float64."""
    found, wanted = found.detach().double(), wanted.double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
