"""Exchange packing: blocks of rows copied between tensors and the buffers of an all-to-all; beside the copies of parallel/layout.py.

    (P, B, g, l) of any strides --rounded, or widened, to the target's type--> (P, B, g, l) of any others

Tokens of a row lie side by side in both, so nothing is turned round: a row is read and written as it is. A tensor that goes
through channel layout and back was copied four times, twice here and twice there. What is left of them, in bytes an element of
bf16 whose result PyTorch's transform writes in float32:

    to be sent to channels      4    none where B = 1: what goes to a rank is one block of u, which is sent from where it is
    put together, (B, g, L)     4    none: the kernel that weights a signal, or takes it down the columns, reads the pieces received
    to be sent to tokens        6    none: the convolution's last kernel rounds, and writes the pieces
    to its channels             4    none where B = 1: a block of y, which is received where it belongs

The filter, B = 1, is copied once where it arrives and its gradient once where it leaves; where B > 1 activations are copied at
both ends. One launch a tensor: none is left to be joined with another's where B = 1.

P sequence-parallel size, B batch, g channels, l local length, L = P l.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyena_ds.ops.triton.traffic import Traffic, launch, traffic

_BLOCK = 1024


def copy_pieces(target_PBgl: Tensor, source_PBgl: Tensor) -> Tensor:
    """`target`, with the values of `source` in its own type."""
    P, B, g, l = source_PBgl.shape
    assert target_PBgl.shape == source_PBgl.shape
    for x in (target_PBgl, source_PBgl):
        assert x.stride(3) == 1 or l == 1, "tokens of a channel are not side by side"
    launch(
        _copy_kernel, (triton.cdiv(l, _BLOCK), g, P * B), source_PBgl, lambda: copy_traffic(target_PBgl, source_PBgl),
        target_PBgl, *target_PBgl.stride()[:3], source_PBgl, *source_PBgl.stride()[:3], B, l, _BLOCK,
    )  # fmt: skip
    return target_PBgl


def length_of(x_BgL: Tensor) -> int:
    """Tokens of a signal, whole or in pieces (B, g, P, l)."""
    return x_BgL.shape[2] * (x_BgL.shape[3] if x_BgL.dim() == 4 else 1)


def pieces_of(x_BgL: Tensor) -> tuple[int, int]:
    """(what `in_pieces` takes: elements from one piece to the next, tokens of a piece); the whole is one piece."""
    l = x_BgL.shape[-1]
    assert x_BgL.stride(-1) == 1 or l == 1, "tokens of a channel are not side by side"
    return (x_BgL.stride(2), l) if x_BgL.dim() == 4 else (0, l)


def empty_as_it_lies(like_BgL: Tensor) -> Tensor:
    """A signal without values, of the type of `like`, and in pieces that are blocks of memory if that one is in pieces."""
    if like_BgL.dim() < 4:
        return torch.empty(like_BgL.shape, device=like_BgL.device, dtype=like_BgL.dtype)
    pieces_PBgl = like_BgL.permute(2, 0, 1, 3)
    return torch.empty(pieces_PBgl.shape, device=like_BgL.device, dtype=like_BgL.dtype).permute(1, 2, 0, 3)


def copy_traffic(target: Tensor, source: Tensor) -> Traffic:
    """Bytes of `copy_pieces`."""
    return traffic((source,), (target,))


@triton.jit
def in_pieces(t, x_P, l, PIECES: tl.constexpr):
    """Where token t of a channel is, from its first on."""
    if PIECES:
        return (t // l).to(tl.int64) * x_P + t % l
    else:
        return t


@triton.jit
def _copy_kernel(target, to_P, to_B, to_g, source, at_P, at_B, at_g, batch, l, BLOCK: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.program_id(1).to(tl.int64)
    p = (tl.program_id(2) // batch).to(tl.int64)
    b = (tl.program_id(2) % batch).to(tl.int64)
    value = tl.load(source + p * at_P + b * at_B + g * at_g + t, mask=t < l, other=0.0)
    at = target + p * to_P + b * to_B + g * to_g + t
    tl.store(at, value.to(target.dtype.element_ty), mask=t < l)
