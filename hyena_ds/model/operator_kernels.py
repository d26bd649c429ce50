"""The Hyena operator's half-block by Triton kernels; the same functions as in operator.py, for a device.

    r --norm--> x --product--> p --gates--> u --long convolution--> y --gates with p--> z --product, + bias, dropout--> + r

All tokens go through at once: a kernel keeps nothing between p and u. What lies between kernels has the compute dtype, but
for the residual and what goes into and out of the convolution. Rows of p begin with the first token here; what the two
before it give comes apart, from the left neighbour. Imports triton.

B batch, l local length, L context length, D width, C = 3 D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.long_convolution import convolution_backward, convolution_forward
from hyena_ds.model.operator import Kept
from hyena_ds.model.projection import OperatorWeights
from hyena_ds.ops.large import empty, empty_like
from hyena_ds.ops.products import add_product, product_to_channels, product_to_tokens
from hyena_ds.ops.short_convolution import HALO, short_convolution
from hyena_ds.ops.triton.dropout import Dropped
from hyena_ds.ops.triton.gates import ShortWeights, gates, gates_backward
from hyena_ds.ops.triton.residual import add_dropped, dropped_gradient, norm, norm_backward


def operator_forward(
    r_BlD: Tensor, weights: OperatorWeights, k_dL: Tensor, call: ForwardPass, layer: int, dropout: float
) -> tuple[Tensor, Kept]:
    """As `model.operator.operator_forward`."""
    r_BlD = r_BlD.contiguous()
    B, l, D = r_BlD.shape
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    project = _Projection(r_BlD, weights, call)
    p_BCl = project()
    left_BC2 = project.left()
    u_BDl = empty((B, D, l), r_BlD.device, call.moved_dtype(r_BlD.device))
    gates(p_BCl, left_BC2, short, u_BDn=u_BDl)
    if call.watch is not None:
        call.watch(r_BlD, u_BDl)
    y_BDl, groups = convolution_forward(u_BDl, k_dL, weights.skip, call)
    z_BDl = empty((B, D, l), r_BlD.device, call.compute_dtype)
    gates(p_BCl, left_BC2, short, z_BDn=z_BDl, y_BDn=y_BDl)
    kept = Kept(
        p_BCl if call.policy.keep_projections else None, y_BDl if call.policy.keep_convolution else None, groups
    )
    del p_BCl, u_BDl, y_BDl
    mixed_BlD = product_to_tokens(z_BDl, weights.out_weight.to(call.compute_dtype).t())
    dropped = dropped_of(call, layer, dropout)
    return add_dropped(r_BlD, mixed_BlD, weights.out_bias, dropped, empty_like(r_BlD)), kept


def operator_backward(
    dout_BlD: Tensor,
    r_BlD: Tensor,
    weights: OperatorWeights,
    k_dL: Tensor,
    slot: FilterSlot,
    call: ForwardPass,
    layer: int,
    dropout: float,
    kept: Kept,
) -> tuple[Tensor, OperatorWeights]:
    """As `model.operator.operator_backward`: the gradient of r overwrites `dout`."""
    r_BlD = r_BlD.contiguous()
    B, l, D = r_BlD.shape
    short = ShortWeights(weights.in_bias, weights.short_weight, weights.short_bias)
    project = _Projection(r_BlD, weights, call)
    in_weight, out_weight = (weight.to(call.compute_dtype) for weight in (weights.in_weight, weights.out_weight))
    dmixed_BlD, dout_bias = dropped_gradient(dout_BlD, dropped_of(call, layer, dropout), call.compute_dtype)
    dz_BDl = product_to_channels(out_weight.t(), dmixed_BlD)
    p_BCl = project() if kept.projected_BCm is None else kept.projected_BCm
    left_BC2 = project.left()
    moved = call.moved_dtype(r_BlD.device)
    u_BDl = None if kept.groups else empty((B, D, l), r_BlD.device, moved)
    dy_BDl = empty((B, D, l), r_BlD.device, moved)
    gates(p_BCl, left_BC2, short, u_BDn=u_BDl, dy_BDn=dy_BDl, dz_BDn=dz_BDl)

    dskip = torch.zeros_like(weights.skip)
    through = kept.groups, kept.y_BDl
    y_BDl, du_BDl = convolution_backward(dy_BDl, u_BDl, k_dL, weights.skip, dskip, slot, call, *through)

    right_BC2 = _from_right(p_BCl, left_BC2, short, dz_BDl, y_BDl, du_BDl, call)
    found = gates_backward(p_BCl, left_BC2, short, dz_BDl, y_BDl, du_BDl, right_BC2, with_z=True)
    assert found.z_BDn is not None
    del p_BCl, dz_BDl, u_BDl, y_BDl, du_BDl, dy_BDl
    din_weight, dout_weight = torch.zeros_like(weights.in_weight), torch.zeros_like(weights.out_weight)
    add_product(dout_weight, dmixed_BlD.mT, found.z_BDn.mT)
    add_product(din_weight, found.dp_BCn, norm(r_BlD, weights.norm_weight, weights.norm_bias, call.compute_dtype))
    dx_BlD = product_to_tokens(found.dp_BCn, in_weight)
    dnorms = norm_backward(dx_BlD, r_BlD, weights.norm_weight, dout_BlD, dout_BlD)
    of_short = found.weight_C13, found.bias_C
    return dout_BlD, OperatorWeights(*dnorms, din_weight, found.in_bias_C, *of_short, dskip, dout_weight, dout_bias)


def dropped_of(
    call: ForwardPass, layer: int, probability: float, rows: slice = slice(None), first: int = 0
) -> Dropped | None:
    """The dropout of tokens from `first` on, as `ForwardPass.drop` does it; None where nothing is dropped."""
    if call.dropout is None or probability == 0.0:
        return None
    return Dropped.of(call.dropout.of(rows), probability, layer, call.layout.offset + first)


class _Projection:
    """p of all tokens here, without its bias, and of the two before them, which are asked for at once."""

    def __init__(self, r_BlD: Tensor, weights: OperatorWeights, call: ForwardPass):
        self._r_BlD, self._weights, self._call = r_BlD, weights, call
        self._halo = None
        if not is_whole(call):
            B, l, D = r_BlD.shape
            tail_B2D = r_BlD.new_zeros((B, HALO, D))
            tail_B2D[:, -l:] = r_BlD[:, -HALO:]
            self._halo = call.layout.exchange.from_left(tail_B2D)

    def __call__(self) -> Tensor:
        """(B, C, l), in the compute dtype."""
        return self._of(self._r_BlD)

    def left(self) -> Tensor | None:
        """(B, C, 2); None before the first token of a sequence."""
        halo_B2D = None if self._halo is None else self._halo.wait()
        return None if halo_B2D is None or self._call.layout.offset == 0 else self._of(halo_B2D)

    def _of(self, r_BnD: Tensor) -> Tensor:
        dtype, weights = self._call.compute_dtype, self._weights
        x_BnD = norm(r_BnD, weights.norm_weight, weights.norm_bias, dtype)
        return product_to_channels(weights.in_weight.to(dtype), x_BnD)


def is_whole(call: ForwardPass) -> bool:
    """Whether no token of the sequences is elsewhere."""
    return call.layout.exchange.group is None and call.layout.offset == 0


def _from_right(
    p_BCl: Tensor,
    left_BC2: Tensor | None,
    short: ShortWeights,
    dz_BDl: Tensor,
    y_BDl: Tensor,
    du_BDl: Tensor,
    call: ForwardPass,
) -> Tensor | None:
    """(B, C, 2): the right neighbour's gradient at the short filter's output of its first two tokens; this rank's goes left."""
    if is_whole(call):
        return None
    head_BC2 = p_BCl[..., :HALO].float() + short.in_bias_C.unsqueeze(1)
    before_BC2 = torch.zeros_like(head_BC2) if left_BC2 is None else left_BC2.float() + short.in_bias_C.unsqueeze(1)
    _, x1, v = short_convolution(torch.cat((before_BC2, head_BC2), dim=-1), short.weight_C13, short.bias_C).chunk(3, 1)
    dz, y, du = (x[..., :HALO].float() for x in (dz_BDl, y_BDl, du_BDl))
    return call.layout.exchange.from_right(torch.cat((dz * y, du * v, du * x1), dim=1)).wait()
