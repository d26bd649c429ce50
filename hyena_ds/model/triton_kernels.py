"""The model by Triton kernels: the value that a pass is given, and the embedding's function; imports triton.

B batch, l local length, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyena_ds.model.filter_kernel import evaluate_filter, filter_gradients
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.model.mlp_kernels import mlp_backward, mlp_forward
from hyena_ds.model.operator_kernels import dropped_of, operator_backward, operator_forward
from hyena_ds.ops.triton import cases
from hyena_ds.ops.triton.cross_entropy import cross_entropy
from hyena_ds.ops.triton.packing import copy_pieces
from hyena_ds.ops.triton.packing_cases import PACKING_CASES
from hyena_ds.ops.triton.residual import embedded, embedded_backward
from hyena_ds.ops.triton.spectra import convolution_with_skip
from hyena_ds.ops.triton.spectra_cases import SPECTRA_CASES


class _Embedded(torch.autograd.Function):
    """Embedding and dropout in one pass; backward makes the mask again."""

    @staticmethod
    def forward(ctx: Any, ids_Bl: Tensor, embedding_VD: Tensor, probability: float, call: ForwardPass) -> Tensor:
        ids_Bl = ids_Bl.contiguous()
        ctx.dropped, ctx.words = dropped_of(call, 0, probability), embedding_VD.shape[0]
        ctx.save_for_backward(ids_Bl)
        return embedded(ids_Bl, embedding_VD, ctx.dropped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dr_BlD: Tensor) -> tuple[None, Tensor, None, None]:
        (ids_Bl,) = ctx.saved_tensors
        return None, embedded_backward(ids_Bl, dr_BlD.contiguous(), ctx.dropped, ctx.words), None, None


def embed(ids_Bl: Tensor, embedding_VD: Tensor, probability: float, call: ForwardPass) -> Tensor:
    """dropout(embedding[ids]), (B, l, D) float32."""
    r_BlD: Tensor = _Embedded.apply(ids_Bl, embedding_VD, probability, call)  # type: ignore[no-untyped-call, unused-ignore]
    return r_BlD


TRITON = Kernels(
    "triton",
    operator_forward,
    operator_backward,
    mlp_forward,
    mlp_backward,
    evaluate_filter,
    filter_gradients,
    convolution_with_skip,
    embed,
    cross_entropy,
    copy_pieces,
)

CASES = (*cases.CASES, *SPECTRA_CASES, *PACKING_CASES)
"""The kernels that these are made of, but for the filter's."""
