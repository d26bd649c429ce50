"""One block: two pre-norm half-blocks on a float32 residual, joined into one autograd function.

    r_in --operator half-block--> r_middle --MLP half-block--> r_out

The function saves r_in and what the policy keeps, and recomputes the rest. It is applied inside Block.forward, the module
whose children own the parameters: ZeRO-3 gathers and releases them by that.

B batch, l local length, D width.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import Policy
from hyena_ds.model.filter import FilterShape, FilterWeights, ImplicitFilter, evaluate_filter, filter_gradients
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.model.mlp import MLP, MLPWeights, mlp_backward, mlp_forward
from hyena_ds.model.operator import HyenaOperator, Kept, operator_backward, operator_forward
from hyena_ds.model.projection import OperatorWeights
from hyena_ds.ops.layer_norm import NORM_EPSILON
from hyena_ds.ops.products import without_autocast
from hyena_ds.ops.sizes import AT_WORK_IN_FILTER

_NOTHING_KEPT = Policy(False, False, False, False, False, False, False)


class Block(nn.Module):
    """(B, l, D) -> (B, l, D)."""

    def __init__(self, config: ModelConfig, number: int):
        super().__init__()
        self.number, self.blocks_after = number, config.layers - 1 - number
        self.dropout = config.residual_dropout
        shape = FilterShape(
            config.width, config.maximum_context, config.time_context, config.filter_features, config.filter_shift
        )
        implicit_filter = ImplicitFilter(shape, config.filter_width, config.filter_frequency)
        self.operator_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.operator = HyenaOperator(config.width, implicit_filter)
        self.mlp_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp = MLP(config.width, config.mlp_width)

    def forward(self, residual_BlD: Tensor, call: ForwardPass) -> Tensor:
        """The residual (B, l, D) after the operator and the MLP, float32."""
        weights = self._weights()
        # Inside the function autograd is always off, so whether there will be a backward is found out here.
        if torch.is_grad_enabled():
            call = replace(call, blocks_after=self.blocks_after)
        else:  # nothing is kept before the last block either
            call = replace(call, policy=_NOTHING_KEPT, blocks_after=0)
        out_BlD: Tensor = _BlockFunction.apply(residual_BlD, self, call, *weights)  # type: ignore[no-untyped-call, unused-ignore]
        return out_BlD

    def filter(self, call: ForwardPass) -> Tensor:
        """k_dL of the channels that this rank holds, from the call's filters or put there. Collective, without autograd."""
        return _Spec(self, call, self._weights()).k_dL()

    def _weights(self) -> tuple[Tensor, ...]:
        return (*self.operator_weights(), *self.operator.implicit_filter.weights(), *self.mlp_weights())

    def operator_weights(self) -> OperatorWeights:
        """The parameters of the first half-block, but for the filter's."""
        operator = self.operator
        return OperatorWeights(
            self.operator_norm.weight,
            self.operator_norm.bias,
            operator.in_projection.weight,
            operator.in_projection.bias,
            operator.short_filter.weight,
            operator.short_filter.bias,
            operator.skip,
            operator.out_projection.weight,
            operator.out_projection.bias,
        )

    def mlp_weights(self) -> MLPWeights:
        """The parameters of the second half-block."""
        mlp, norm = self.mlp, self.mlp_norm
        return MLPWeights(norm.weight, norm.bias, mlp.up.weight, mlp.up.bias, mlp.down.weight, mlp.down.bias)


class _Spec:
    """What one call of a block computes with, besides tensors of activations."""

    def __init__(self, block: Block, call: ForwardPass, weights: tuple[Tensor, ...]):
        self.call, self.number, self.dropout = call, block.number, block.dropout
        self.shape = block.operator.implicit_filter.shape
        self._pieces = call.pieces(weights[0].device, AT_WORK_IN_FILTER)
        self.kernels = call.kernels or _portable()
        self._k_dL: Tensor | None = None
        operator, implicit = len(OperatorWeights._fields), len(FilterWeights._fields)
        self.operator = OperatorWeights(*weights[:operator])
        self.filter = FilterWeights(*weights[operator : operator + implicit])
        self.mlp = MLPWeights(*weights[operator + implicit :])

    def k_dL(self) -> Tensor:
        """This step's filter, in channel layout. One call of a block evaluates it at most once."""
        if self._k_dL is not None:
            return self._k_dL
        layout, cache = self.call.layout, self.call.filters

        def evaluate() -> Tensor:
            k_Dl = self.kernels.evaluate_filter(
                self.shape, self.filter, layout.offset, layout.local_length, cache.columns, self._pieces
            )
            return self.call.exchange.to_channels(k_Dl.unsqueeze(0)).squeeze(0)

        keep = self.call.policy.keep_filter or cache.keeps
        self._k_dL = cache.slot(self.number).get(evaluate, layout.context_length, keep)
        return self._k_dL

    def filter_gradients(self) -> FilterWeights:
        """In the step's last micro step, of all its micro steps; before it, zeros.

        Zeros and not nothing: ZeRO-3 adds a gradient that first arrives in a later micro step to the step before.
        """
        if not self.call.filters.last:
            return FilterWeights(*(torch.zeros_like(weight) for weight in self.filter))
        exchange = self.call.exchange
        dk_dL = self.call.filters.slot(self.number).take_gradient()
        dk_Dl = exchange.to_tokens(dk_dL.unsqueeze(0)).squeeze(0)
        # An earlier micro step may have had more tokens than this one.
        offset = exchange.index * dk_Dl.shape[1]
        return self.kernels.filter_gradients(self.shape, self.filter, offset, dk_Dl, self._pieces)

    def operator_forward(self, r_BlD: Tensor, call: ForwardPass) -> tuple[Tensor, Kept]:
        layer = 2 * self.number + 1
        return self.kernels.operator_forward(r_BlD, self.operator, self.k_dL(), call, layer, self.dropout)

    def mlp_forward(self, r_BlD: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.kernels.mlp_forward(r_BlD, self.mlp, self.call, 2 * self.number + 2, self.dropout)

    def operator_backward(self, dr_BlD: Tensor, r_BlD: Tensor, kept: Kept) -> tuple[Tensor, OperatorWeights]:
        slot, layer = self.call.filters.slot(self.number), 2 * self.number + 1
        how = self.call, layer, self.dropout, kept
        return self.kernels.operator_backward(dr_BlD, r_BlD, self.operator, self.k_dL(), slot, *how)

    def mlp_backward(self, dr_BlD: Tensor, r_BlD: Tensor, kept: Tensor | None) -> tuple[Tensor, MLPWeights]:
        how = self.call, 2 * self.number + 2, self.dropout, kept
        return self.kernels.mlp_backward(dr_BlD, r_BlD, self.mlp, *how)


def _portable() -> Kernels:
    """The functions of this package, as they are now: benchmarks put others in their place."""
    halves = operator_forward, operator_backward, mlp_forward, mlp_backward
    return Kernels("portable", *halves, evaluate_filter, filter_gradients)


class _BlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r_BlD: Tensor, block: Block, call: ForwardPass, *weights: Tensor) -> Tensor:
        spec = _Spec(block, call, weights)
        with without_autocast(r_BlD.device):
            middle_BlD, kept = spec.operator_forward(r_BlD, call)
            out_BlD, inner_BlI = spec.mlp_forward(middle_BlD)
        ctx.block, ctx.call = block, call
        ctx.weights, ctx.a_group = len(weights), len(kept.groups[0]) if kept.groups else 1
        middle = middle_BlD if call.policy.keep_middle else None
        ctx.save_for_backward(*weights, r_BlD, middle, inner_BlI, kept.projected_BCm, kept.y_BDl, *chain(*kept.groups))
        return out_BlD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BlD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weights = saved[: ctx.weights]
        r_BlD, middle_BlD, inner_BlI, projected_BCm, y_BDl, *in_groups = saved[ctx.weights :]
        # What a half-block has used is freed before the next begins.
        ctx.maybe_clear_saved_tensors()
        del saved
        spec = _Spec(ctx.block, ctx.call, weights)
        with without_autocast(dout_BlD.device):
            if middle_BlD is None:
                middle_BlD, _ = spec.operator_forward(r_BlD, replace(ctx.call, policy=_NOTHING_KEPT))
            dmiddle_BlD, mlp = spec.mlp_backward(dout_BlD, middle_BlD, inner_BlI)
            del middle_BlD, inner_BlI
            of_groups = (in_groups[first : first + ctx.a_group] for first in range(0, len(in_groups), ctx.a_group))
            kept = Kept(projected_BCm, y_BDl, tuple(tuple(of_group) for of_group in of_groups))
            dr_BlD, operator = spec.operator_backward(dmiddle_BlD, r_BlD, kept)
            implicit = spec.filter_gradients()
        return dr_BlD, None, None, *operator, *implicit, *mlp
