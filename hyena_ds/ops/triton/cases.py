"""The kernels of one pass beside the portable code that they replace.

B batch, D width, I inner width, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena_ds.ops.cross_entropy import IGNORED, summed_cross_entropy
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.ops.gelu import gelu as portable_gelu
from hyena_ds.ops.gelu import gelu_with_slope
from hyena_ds.ops.layer_norm import layer_norm, layer_norm_backward
from hyena_ds.ops.short_convolution import (
    HALO,
    short_convolution,
    short_convolution_to_input,
    short_convolution_to_weight,
)
from hyena_ds.ops.triton import cross_entropy, gates, gelu, residual
from hyena_ds.ops.triton.case import Case, Sizes, Tensors
from hyena_ds.ops.triton.dropout import Dropped
from hyena_ds.ops.triton.traffic import traffic


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _make_gates(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    B, n, D, dtype = sizes.batch, sizes.tokens, sizes.width, sizes.compute_dtype
    p, left = random(B, 3 * D, n, dtype=dtype), random(B, 3 * D, HALO, dtype=dtype)
    return p, left, random(3 * D), random(3 * D, 1, 3), random(3 * D), random(B, D, n), random(B, D, n, dtype=dtype)


def _make_gates_backward(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    B, n, D = sizes.batch, sizes.tokens, sizes.width
    return *_make_gates(sizes, random), random(B, D, n), random(B, 3 * D, HALO)


def _projected(p: Tensor, left: Tensor, in_bias: Tensor) -> Tensor:
    return torch.cat((_wide(left), _wide(p)), dim=-1).add_(in_bias.unsqueeze(1))


def _parts(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
    return short_convolution(_projected(p, left, in_bias), weight, bias).chunk(3, dim=1)


def _u(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor) -> Tensors:
    _, x1, v = _parts(p, left, in_bias, weight, bias)
    return (x1 * v,)


def _kernel_u(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor) -> Tensors:
    u = torch.empty_like(y)
    gates.gates(p, left, gates.ShortWeights(in_bias, weight, bias), u_BDn=u)
    return (u,)


def _z(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor) -> Tensors:
    D = y.shape[1]
    x0 = short_convolution(_projected(p[:, :D], left[:, :D], in_bias[:D]), weight[:D], bias[:D])
    return ((x0 * y).to(p.dtype),)


def _kernel_z(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor) -> Tensors:
    z = torch.empty_like(dz)
    gates.gates(p, left, gates.ShortWeights(in_bias, weight, bias), z_BDn=z, y_BDn=y)
    return (z,)


def _u_dy(p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor) -> Tensors:
    x0, x1, v = _parts(p, left, in_bias, weight, bias)
    return x1 * v, _wide(dz) * x0


def _kernel_u_dy(
    p: Tensor, left: Tensor, in_bias: Tensor, weight: Tensor, bias: Tensor, y: Tensor, dz: Tensor
) -> Tensors:
    u, dy = torch.empty_like(y), torch.empty_like(y)
    gates.gates(p, left, gates.ShortWeights(in_bias, weight, bias), u_BDn=u, dy_BDn=dy, dz_BDn=dz)
    return u, dy


def _gates_backward(
    p: Tensor,
    left: Tensor,
    in_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    dz: Tensor,
    du: Tensor,
    right: Tensor,
) -> Tensors:
    projected = _projected(p, left, in_bias)
    x0, x1, v = short_convolution(projected, weight, bias).chunk(3, dim=1)
    z = torch.mul(y, x0).to(p.dtype)
    dq = torch.cat((_wide(dz) * y, torch.mul(du, v), torch.mul(du, x1)), dim=1)
    dweight, dbias = short_convolution_to_weight(dq, projected)
    dq = torch.cat((dq, right), dim=-1)
    dp = short_convolution_to_input(dq, weight)
    return dp.to(p.dtype), z, dp.sum((0, 2)), dweight, dbias, dq[..., :HALO].float()


def _kernel_gates_backward(
    p: Tensor,
    left: Tensor,
    in_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    dz: Tensor,
    du: Tensor,
    right: Tensor,
) -> Tensors:
    found = gates.gates_backward(p, left, gates.ShortWeights(in_bias, weight, bias), dz, y, du, right, True, True)
    assert found.z_BDn is not None and found.head_BC2 is not None
    return found.dp_BCn, found.z_BDn, found.in_bias_C, found.weight_C13, found.bias_C, found.head_BC2


def _make_gelu(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    shape = (sizes.batch * sizes.tokens, sizes.inner)
    return random(*shape, dtype=sizes.compute_dtype), random(*shape, dtype=sizes.compute_dtype)


def _gelu_backward(h: Tensor, da: Tensor) -> Tensors:
    a, slope = gelu_with_slope(_wide(h))
    dh = slope.mul_(da)
    return a.to(h.dtype), dh.to(h.dtype), dh.sum(0)


_PROBABILITY, _LAYER, _OFFSET = 0.1, 3, (1 << 32) - 7
"""The key of the cases' dropout; the positions go beyond 32 bits."""


def _key(samples: Tensor) -> DropoutKey:
    return DropoutKey(2222, 12, samples)


def _dropped(samples: Tensor) -> Dropped:
    return Dropped.of(_key(samples), _PROBABILITY, _LAYER, _OFFSET)


def _drop(x: Tensor, samples: Tensor) -> Tensor:
    return keyed_dropout(x, _PROBABILITY, _key(samples), _LAYER, _OFFSET)


def _samples(like: Tensor) -> Tensor:
    return torch.arange(5, 5 + like.shape[0], device=like.device)


def _make_residual(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(r, y or dx in the compute dtype, two vectors and the norm's weight, samples)."""
    shape, D = (sizes.batch, sizes.tokens, sizes.width), sizes.width
    r = random(*shape)
    return r, random(*shape, dtype=sizes.compute_dtype), random(D), random(D), random(D), _samples(r)


def _make_norm_backward(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    return *_make_residual(sizes, random), random(sizes.batch, sizes.tokens, sizes.width)


def _add_dropped_norm(r: Tensor, y: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, samples: Tensor) -> Tensors:
    out = r + _drop(_wide(y) + bias, samples)
    return out, layer_norm(out, scale, shift).x.to(y.dtype)


def _kernel_add_dropped_norm(
    r: Tensor, y: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, samples: Tensor
) -> Tensors:
    out = torch.empty_like(r)
    x = residual.add_dropped_norm(r, y, bias, _dropped(samples), out, scale, shift, y.dtype)
    return out, x


def _norm_backward(
    r: Tensor, dx: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, samples: Tensor, dout: Tensor
) -> Tensors:
    sums = torch.zeros_like(scale), torch.zeros_like(scale)
    dr = layer_norm_backward(_wide(dx), r, layer_norm(r, scale, shift), scale, shift, *sums)
    return dr.add_(dout), *sums


def _kernel_norm_backward(
    r: Tensor, dx: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, samples: Tensor, dout: Tensor
) -> Tensors:
    dr = torch.empty_like(r)
    return dr, *residual.norm_backward(dx, r, scale, dout, dr)


def _dropped_gradient(r: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor, samples: Tensor) -> Tensors:
    dy = _drop(r, samples)
    return dy.to(y.dtype), dy.sum((0, 1))


def _make_embedding(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(ids, the embedding of 16 words, samples, dr)."""
    ids = (random(sizes.batch, sizes.tokens) * 1000).to(torch.int64).remainder_(16).to(torch.uint8)
    return ids, random(16, sizes.width), _samples(ids), random(sizes.batch, sizes.tokens, sizes.width)


def _embedded(ids: Tensor, embedding: Tensor, samples: Tensor, dr: Tensor) -> Tensors:
    return (_drop(torch.nn.functional.embedding(ids.int(), embedding), samples),)


def _embedded_backward(ids: Tensor, embedding: Tensor, samples: Tensor, dr: Tensor) -> Tensors:
    dropped = _drop(dr, samples)
    return (torch.ops.aten.embedding_dense_backward(dropped, ids.long(), 16, -1, False),)


def _make_loss(sizes: Sizes, random: Callable[..., Tensor]) -> Tensors:
    """(r, norm weight, norm bias, embedding of 16 words, targets, a tenth of them ignored)."""
    D = sizes.width
    targets = (random(sizes.batch, sizes.tokens) * 1000).long()
    targets = torch.where(targets % 10 == 0, IGNORED, targets.remainder(16))
    return random(sizes.batch, sizes.tokens, D), random(D), random(D), random(16, D), targets


def _loss(r: Tensor, scale: Tensor, shift: Tensor, embedding: Tensor, targets: Tensor) -> Tensors:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (r, scale, shift, embedding)]
        loss = summed_cross_entropy(leaves[0], leaves[1], leaves[2], leaves[3], targets)
        return loss.detach(), *torch.autograd.grad(loss, leaves)


def _kernel_loss(r: Tensor, scale: Tensor, shift: Tensor, embedding: Tensor, targets: Tensor) -> Tensors:
    loss, gradients = cross_entropy.cross_entropy(r, scale, shift, embedding, targets, True)
    assert gradients is not None
    return loss.float(), *gradients


LOSS = Case(
    "norm, head, loss",
    ("loss", "dr", "scale", "shift", "embedding"),
    _make_loss,
    _kernel_loss,
    _loss,
    lambda r, scale, shift, embedding, targets: cross_entropy.cross_entropy_traffic(r, targets, r),
)


CASES = (
    Case(
        "gates: u",
        ("u",),
        _make_gates,
        _kernel_u,
        _u,
        lambda p, left, a, w, b, y, dz: gates.gates_traffic(p, y, None, None, None, None),
    ),
    Case(
        "gates: z",
        ("z",),
        _make_gates,
        _kernel_z,
        _z,
        lambda p, left, a, w, b, y, dz: gates.gates_traffic(p, None, dz, y, None, None),
    ),
    Case(
        "gates: u, dy",
        ("u", "dy"),
        _make_gates,
        _kernel_u_dy,
        _u_dy,
        lambda p, left, a, w, b, y, dz: gates.gates_traffic(p, y, None, None, y, dz),
    ),
    Case(
        "gates backward",
        ("dp", "z", "in_bias", "weight", "bias", "head"),
        _make_gates_backward,
        _kernel_gates_backward,
        _gates_backward,
        lambda p, left, a, w, b, y, dz, du, right: gates.gates_backward_traffic(p, dz, y, du, p, dz),
    ),
    Case(
        "gelu",
        ("a",),
        _make_gelu,
        lambda h, da: (gelu.gelu(h),),
        lambda h, da: (portable_gelu(_wide(h)).to(h.dtype),),
        lambda h, da: gelu.gelu_traffic(h),
    ),
    Case(
        "gelu backward",
        ("a", "dh", "sum"),
        _make_gelu,
        lambda h, da: gelu.gelu_backward(h, da),
        _gelu_backward,
        lambda h, da: gelu.gelu_backward_traffic(h),
    ),
    Case(
        "residual: norm",
        ("x",),
        _make_residual,
        lambda r, y, a, shift, scale, samples: (residual.norm(r, scale, shift, y.dtype),),
        lambda r, y, a, shift, scale, samples: (layer_norm(r, scale, shift).x.to(y.dtype),),
        lambda r, y, *rest: traffic((r,), (y,)),
    ),
    Case(
        "residual: add, drop, norm",
        ("out", "x"),
        _make_residual,
        _kernel_add_dropped_norm,
        _add_dropped_norm,
        lambda r, y, *rest: residual.add_dropped_norm_traffic(r, y, r, y),
    ),
    Case(
        "residual: norm backward",
        ("dr", "weight", "bias"),
        _make_norm_backward,
        _kernel_norm_backward,
        _norm_backward,
        lambda r, dx, a, b, c, samples, dout: residual.norm_backward_traffic(dx, r, dout, r),
    ),
    Case(
        "residual: drop backward",
        ("dy", "sum"),
        _make_residual,
        lambda r, y, a, b, c, samples: residual.dropped_gradient(r, _dropped(samples), y.dtype),
        _dropped_gradient,
        lambda r, y, *rest: traffic((r,), (y,)),
    ),
    Case(
        "embedding, drop",
        ("r",),
        _make_embedding,
        lambda ids, embedding, samples, dr: (residual.embedded(ids, embedding, _dropped(samples)),),
        _embedded,
        lambda ids, embedding, samples, dr: traffic((ids,), (dr,)),
    ),
    Case(
        "embedding backward",
        ("embedding",),
        _make_embedding,
        lambda ids, embedding, samples, dr: (residual.embedded_backward(ids, dr, _dropped(samples), 16),),
        _embedded_backward,
        lambda ids, embedding, samples, dr: traffic((ids, dr), ()),
    ),
    LOSS,
)
"""Kernels of one pass."""
