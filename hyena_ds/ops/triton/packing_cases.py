"""The kernels that copy and read pieces of an exchange beside PyTorch's operations, as cases.py has the others.

P ranks, B batch, g channels, l local length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.ops.triton import packing, spectra
from hyena_ds.ops.triton.case import Case, Sizes, Tensors
from hyena_ds.ops.triton.spectra_cases import turn
from hyena_ds.ops.triton.traffic import Traffic

_RANKS = 3


def _make(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(what a transform gives, longer than the sequence; what came from other ranks)."""
    P, B, g, l = _RANKS, sizes.batch, sizes.width, sizes.tokens
    return random(B, g, 2 * P * l), random(P, B, g, l, dtype=sizes.compute_dtype)


def _copies(copy: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensors]:
    def through(signal: Tensor, pieces: Tensor) -> Tensors:
        """What is sent of a signal; a sequence put together; pieces among the channels of all ranks, every other one."""
        P, B, g, l = pieces.shape
        sent, whole = torch.empty_like(pieces), signal.new_empty((B, g, P, l))
        landed = pieces.new_zeros((B, P, 2 * g, l))
        copy(sent, signal[..., : P * l].unflatten(2, (P, l)).permute(2, 0, 1, 3))
        copy(whole.permute(2, 0, 1, 3), pieces)
        copy(landed[:, :, ::2].transpose(0, 1), pieces)
        return sent, whole, landed

    return through


def _copies_traffic(signal: Tensor, pieces: Tensor) -> Traffic:
    like_whole = signal[..., : pieces.numel() // pieces[0, :, :, 0].numel()]
    copies = (pieces, like_whole), (like_whole, pieces), (pieces, pieces)
    found = [packing.copy_traffic(target, source) for target, source in copies]
    return Traffic(sum(each.read for each in found), sum(each.written for each in found))


def _weighted(signal: Tensor, pieces: Tensor) -> Tensors:
    return (torch.view_as_real(spectra.weighted(pieces.permute(1, 2, 0, 3), _points(pieces))),)


def _portable_weighted(signal: Tensor, pieces: Tensor) -> Tensors:
    whole = pieces.permute(1, 2, 0, 3).flatten(2)
    whole = whole if whole.dtype == torch.float64 else whole.float()
    padded = torch.nn.functional.pad(whole, (0, _points(pieces) - whole.shape[2]))
    return (torch.view_as_real(padded * turn(whole, padded.shape[2], back=False)),)


def _weighted_traffic(signal: Tensor, pieces: Tensor) -> Traffic:
    return spectra.weighted_traffic(pieces, signal.new_empty((*pieces.shape[1:3], _points(pieces), 2)))


def _points(pieces: Tensor) -> int:
    length = pieces.shape[0] * pieces.shape[3]
    return length + length // 3


def _real_part(signal: Tensor, pieces: Tensor) -> Tensors:
    return (spectra.real_part(_complex(signal), packing.empty_as_it_lies(pieces.permute(1, 2, 0, 3))),)


def _portable_real_part(signal: Tensor, pieces: Tensor) -> Tensors:
    z = _complex(signal)
    real = (z * turn(signal, z.shape[2], back=True)).real
    return (real.unflatten(2, (pieces.shape[0], -1)).to(pieces.dtype),)


def _complex(signal: Tensor) -> Tensor:
    return torch.view_as_complex(signal.unflatten(2, (-1, 2)))


PACKING_CASES = (
    Case(
        "exchange: copies",
        ("sent", "whole", "landed"),
        _make,
        _copies(packing.copy_pieces),
        _copies(Tensor.copy_),
        _copies_traffic,
    ),
    Case(
        "exchange: weights",
        ("weighted",),
        _make,
        _weighted,
        _portable_weighted,
        _weighted_traffic,
    ),
    Case(
        "exchange: real part",
        ("y",),
        _make,
        _real_part,
        _portable_real_part,
        lambda signal, pieces: spectra.real_part_traffic(_complex(signal), pieces.permute(1, 2, 0, 3)),
    ),
)
"""Results of the first are exact but where they are rounded."""
