"""One number for many tensors, by which ranks see whether they still hold the same ones.

    bit patterns of float32 as integers --sum, modulo 2^64, on the device--> bits of the tensors

Any flipped bit changes it. What is compared depends on where ZeRO keeps what:

    ZeRO 0       parameters and reduced gradients: whole on every rank, so all ranks must have the same
    ZeRO 1, 2    parameters as the passes use them: the same on all ranks; and this rank's part of them must be what AdamW
                 updates here, of which there is no other copy. Both in every step: an update makes live parameters anew
    ZeRO 3       no rank holds what another holds: this rank's shard must be what AdamW updates here, in every step

AdamW's moments, and under ZeRO 1 to 3 the reduced gradients, exist once, so nothing is there to compare them with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

NUMBERS = 3
"""What a rank hands in: the two halves of its digest, and whether its own copies differed."""
_HALF = 32
_ODD = 6364136223846793005
"""Multiplies the digest of the steps before, so that no later step undoes what an earlier one changed."""


def bits(tensors: Iterable[Tensor]) -> Tensor | None:
    """The sum of the bit patterns of float32 tensors, an int64 scalar where they are; None without any."""
    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors if tensor.numel()]
    if len(sums) < 2:
        return sums[0] if sums else None
    return torch.stack(sums).sum()


def differing(values: Sequence[Hashable]) -> list[int]:
    """The ranks whose value is not that of more than half of them; all where there is no majority, and none agree."""
    ((common, count), *_) = Counter(values).most_common()
    if count == len(values):
        return []
    return [rank for rank, value in enumerate(values) if 2 * count <= len(values) or value != common]


class Digest:
    """One rank's, of one engine, from one comparison to the next."""

    def __init__(self, device: torch.device):
        self._running = torch.zeros((), dtype=torch.int64, device=device)
        self._unlike = torch.zeros((), dtype=torch.bool, device=device)

    def note(self, engine: deepspeed.DeepSpeedEngine, compared: bool) -> None:
        """Take in what there is before an update. With `compared` the ranks compare after it. Exchanges nothing."""
        stage, zero = engine.zero_optimization_stage(), engine.optimizer
        if stage == 0:
            if compared:
                parameters = list(engine.module.parameters())
                self._add(bits(parameters))
                self._add(bits(p.grad for p in parameters if p.grad is not None))
            return
        if stage < 3:
            self._add(bits(zero.bit16_groups_flat))
            if compared:
                self._add(bits(p for p in engine.module.parameters() if not p.requires_grad))
            live = [parts[dist.get_rank()] for parts in zero.parallel_partitioned_bit16_groups]
            updated = zero.single_partition_of_fp32_groups
        else:
            live, updated = zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat
        one, other = bits(live), bits(updated)
        if one is not None and other is not None:
            self._unlike |= one != other

    def handed_in(self) -> Tensor:
        """NUMBERS float64, exact, that another rank compares with its own: of all that was noted since the last call."""
        mask = (1 << _HALF) - 1
        parts = (self._running & mask, (self._running >> _HALF) & mask, self._unlike)
        handed = torch.stack([part.double() for part in parts])
        self._running = torch.zeros_like(self._running)
        self._unlike = torch.zeros_like(self._unlike)
        return handed

    def _add(self, found: Tensor | None) -> None:
        if found is not None:
            self._running = self._running * _ODD + found
