"""Chooses the filter's shift of weights that do not say it: the one with which a real sequence is predicted better.

The published training code adds 0 to the filter's decay, the published inference code 0.05. Weights were trained with one of
them, and predict worse with the other.

B batch, L context length, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.packed import blocks
from hyena_ds.genome.tokenizer import encode
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.shipped import shipped

CANDIDATES = (0.05, 0.0)
"""That of the published inference code, and of the training code. The first is taken where they predict alike."""
_GENOME, _START = "hg38_chr2_0-2333275.fa.gz", 1_000_000
_TOKENS = 8192
"""Bases that are predicted: seconds for a model of 6.6 M parameters on one core."""


@dataclass(frozen=True)
class Chosen:
    """A shift, and the losses that it was chosen by."""

    shift: float
    losses: dict[float, float]
    """Nats a base, by shift."""

    def __str__(self) -> str:
        losses = ", ".join(f"{loss:.4f} with {shift:g}" for shift, loss in self.losses.items())
        return f"chosen by the loss on hg38 chr2 (nats a base: {losses})"


def choose_shift(config: ModelConfig, parameters: dict[str, Tensor]) -> Chosen:
    """The candidate with the lowest loss on real bases. Two forwards of 8,192 tokens."""
    ids_BL = real_windows(min(config.maximum_context, _TOKENS))
    losses = {}
    for shift in CANDIDATES:
        model = HyenaDNA(replace(config, filter_shift=shift))
        model.load_state_dict(parameters)
        losses[shift] = _loss(model.eval(), ids_BL)
    best = min(CANDIDATES, key=lambda shift: losses[shift] if math.isfinite(losses[shift]) else math.inf)
    return Chosen(best, losses)


@torch.no_grad()
def _loss(model: HyenaDNA, ids_BL: Tensor) -> float:
    """Mean cross-entropy of the next base, over all columns."""
    logits_BLV = model(ids_BL)[:, :-1]
    return float(F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten()))


@cache
def real_windows(length: int) -> Tensor:
    """(B, length) ids of upper-case bases of hg38 chr2 from 1,000,000 on, without N: 8,192 of them or a little fewer."""
    wanted = _START + _TOKENS
    letters = bytearray()
    path = shipped("assets") / _GENOME
    for block in blocks(path, "FASTA", "install hyena-ds again, or give the shift"):
        letters += block
        if len(letters) > wanted * 2:
            break
    bases = bytes(letters).partition(b"\n")[2].replace(b"\n", b"").upper()
    if len(bases) < wanted:
        raise UserError(f"{path}: found {len(bases):,} bases, wanted {wanted:,}; install hyena-ds again")
    count = max(1, _TOKENS // length)
    ids = encode(bases[_START : _START + count * length])
    return torch.from_numpy(ids.copy()).long().view(count, length)
