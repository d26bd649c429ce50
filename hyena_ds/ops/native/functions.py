"""The functions of tiles.c on tensors: contiguous, but for rows of channels, which may be parts of longer ones.

B sequences, n tokens of a tile, D width, C = 3 D, m = n + 2, F width of the filter's MLP, c tokens of a chunk.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena_ds.ops.native.library import library


class _Rows(ctypes.Structure):
    """A tensor (B, channels, tokens) as tiles.c takes it."""

    _fields_ = [
        ("first", ctypes.c_void_p),
        ("batch", ctypes.c_long),
        ("channel", ctypes.c_long),
        ("rounded", ctypes.c_int),
    ]


_NONE = _Rows(None, 0, 0, 0)
_TYPES = {"n": ctypes.c_long, "a": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float, "r": _Rows}
_TAKEN = {
    "norm": "nnn anaa ani",
    "norm_backward": "nn ai aaaaaa",
    "add_residual": "nn aai aa",
    "output_gradient": "nn aai a",
    "add_rounded": "n aa",
    "gelu": "nn aaai",
    "gelu_backward": "nn aaaai a",
    "gates": "nnn raaai rrrrr",
    "gates_backward": "nnn raaai rrra rraaa",
    "sine": "nn aaaaa",
    "sine_backward": "nn aaaaaa",
    "window": "nn anana fan",
}
"""Types of the arguments: numbers of elements, addresses, switches, rows."""


@lru_cache
def _c() -> Any:
    """The functions, which convert Python's numbers. Raises Unusable."""
    found = library()
    for name, taken in _TAKEN.items():
        function = getattr(found, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in taken.replace(" ", "")], None
    return found


def check_floats(*tensors: Tensor) -> None:
    """Raise TypeError unless all are contiguous float32, as the functions read them."""
    for x in tensors:
        if x.dtype != torch.float32 or not x.is_contiguous():
            raise TypeError(
                f"native: found {x.dtype}, strides {x.stride()}, wanted contiguous float32; set kernels: portable"
            )


class ShortWeights(NamedTuple):
    """What the short filter computes with; contiguous."""

    in_bias_C: Tensor
    weight_C13: Tensor
    bias_C: Tensor


def norm(r_BnD: Tensor, weight_D: Tensor, bias_D: Tensor, x_BnD: Tensor) -> None:
    """x = layer norm of r; tokens of a sequence lie side by side in both."""
    B, n, D = r_BnD.shape
    given = _at(r_BnD), r_BnD.stride(0), _at(weight_D), _at(bias_D)
    _c().norm(B, n, D, *given, _at(x_BnD), x_BnD.stride(0), _is_rounded(x_BnD))


def norm_backward(
    dx_nD: Tensor, r_nD: Tensor, weight_D: Tensor, dout_nD: Tensor, out_nD: Tensor, dweight_D: Tensor, dbias_D: Tensor
) -> None:
    """out = dout + the gradient of r, and may be dout; those of weight and bias are added to `dweight` and `dbias`."""
    floats = map(_at, (r_nD, weight_D, dout_nD, out_nD, dweight_D, dbias_D))
    _c().norm_backward(*_size(dx_nD), _at(dx_nD), _is_rounded(dx_nD), *floats)


def add_residual(r_nD: Tensor, y_nD: Tensor, bias_D: Tensor, out_nD: Tensor) -> None:
    """out = r + y + bias."""
    _c().add_residual(*_size(y_nD), _at(r_nD), _at(y_nD), _is_rounded(y_nD), _at(bias_D), _at(out_nD))


def output_gradient(dout_nD: Tensor, scratch_nD: Tensor, sums_D: Tensor | None) -> Tensor:
    """dout in the type of `scratch`, which it may be written to; its sums over tokens are added to `sums`."""
    rounded = scratch_nD.dtype != dout_nD.dtype
    if rounded or sums_D is not None:
        of_sums = None if sums_D is None else _at(sums_D)
        _c().output_gradient(*_size(dout_nD), _at(dout_nD), _at(scratch_nD), int(rounded), of_sums)
    return scratch_nD if rounded else dout_nD


def add_product(total_CD: Tensor, a_Cn: Tensor, b_nD: Tensor, scratch: Tensor) -> None:
    """total += a b, float32; of bfloat16 operands the product is rounded first, in `scratch`."""
    if a_Cn.dtype == total_CD.dtype:
        total_CD.addmm_(a_Cn, b_nD)
        return
    product_CD = scratch[: total_CD.numel()].view(total_CD.shape)
    torch.mm(a_Cn, b_nD, out=product_CD)
    _c().add_rounded(total_CD.numel(), _at(product_CD), _at(total_CD))


def gelu(h_nI: Tensor, bias_I: Tensor, a_nI: Tensor) -> None:
    """a = gelu(h + bias), and may be h."""
    _c().gelu(*_size(h_nI), _at(h_nI), _at(bias_I), _at(a_nI), _is_rounded(h_nI))


def gelu_backward(h_nI: Tensor, bias_I: Tensor, a_nI: Tensor, da_nI: Tensor, sums_I: Tensor) -> None:
    """a = gelu(h + bias), and may be h; da becomes the gradient of h, whose sums over tokens are added to `sums`."""
    tensors = map(_at, (h_nI, bias_I, a_nI, da_nI))
    _c().gelu_backward(*_size(h_nI), *tensors, _is_rounded(h_nI), _at(sums_I))


def gates(
    p_BCm: Tensor,
    short: ShortWeights,
    starts: bool,
    u_BDn: Tensor | None = None,
    dz_BDn: Tensor | None = None,
    dy_BDn: Tensor | None = None,
    y_BDn: Tensor | None = None,
    z_BDn: Tensor | None = None,
) -> None:
    """From x0, x1, v = short filter(p + bias): u = x1 v, dy = dz x0, z = y x0, into those that are given.

    `starts`: the two tokens before the tile are none, and what p has there is overwritten.
    """
    B, _, m = p_BCm.shape
    D, n = short.bias_C.numel() // 3, m - 2
    rows = (_rows(x) for x in (u_BDn, dz_BDn, dy_BDn, y_BDn, z_BDn))
    _c().gates(B, D, n, _rows(p_BCm), *map(_at, short), int(starts), *rows)


def gates_backward(
    p_BCm: Tensor,
    short: ShortWeights,
    starts: bool,
    dz_BDn: Tensor,
    y_BDn: Tensor,
    du_BDn: Tensor,
    next_BC2: Tensor,
    z_BDn: Tensor,
    dp_BCn: Tensor,
    gradients: ShortWeights,
) -> None:
    """z = y x0 again, and the gradient of p; those of the weights are added to `gradients`.

    `next` is the gradient at the short filter's output of the two tokens to the right, and becomes that of the first two here.
    """
    B, _, m = p_BCm.shape
    D, n = short.bias_C.numel() // 3, m - 2
    rows = map(_rows, (dz_BDn, y_BDn, du_BDn))
    made = _at(next_BC2), _rows(z_BDn), _rows(dp_BCn), *map(_at, gradients)
    _c().gates_backward(B, D, n, _rows(p_BCm), *map(_at, short), int(starts), *rows, *made)


def sine(a_Fc: Tensor, bias_F: Tensor, frequency_F: Tensor, h_Fc: Tensor, slope_Fc: Tensor | None) -> None:
    """h = sin(frequency (a + bias)), and may be a where there is no `slope`; with it, a + bias stands in a, and in it the cosine."""
    tensors = map(_at, (a_Fc, bias_F, frequency_F, h_Fc))
    _c().sine(*_size(a_Fc), *tensors, None if slope_Fc is None else _at(slope_Fc))


def sine_backward(
    dh_Fc: Tensor, sums_Fc: Tensor, slope_Fc: Tensor, frequency_F: Tensor, dfrequency_F: Tensor, dbias_F: Tensor
) -> None:
    """The gradient of h becomes that of the sums; those of frequency and bias are added up."""
    _c().sine_backward(*_size(dh_Fc), *map(_at, (dh_Fc, sums_Fc, slope_Fc, frequency_F, dfrequency_F, dbias_F)))


def window(x_Dc: Tensor, within_Dc: Tensor, before_D: Tensor, shift: float, out_Dc: Tensor) -> None:
    """out = x (within before + shift), and may be x. Rows of all but `before` may be parts of longer ones."""
    given = _at(x_Dc), x_Dc.stride(0), _at(within_Dc), within_Dc.stride(0), _at(before_D), shift
    _c().window(*_size(x_Dc), *given, _at(out_Dc), out_Dc.stride(0))


def _rows(x_BCn: Tensor | None) -> _Rows:
    if x_BCn is None:
        return _NONE
    assert x_BCn.stride(2) == 1 or x_BCn.shape[2] == 1
    return _Rows(x_BCn.data_ptr(), x_BCn.stride(0), x_BCn.stride(1), x_BCn.dtype == torch.bfloat16)


def _at(x: Tensor) -> int:
    return x.data_ptr()


def _is_rounded(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _size(x_nD: Tensor) -> tuple[int, int]:
    n, D = x_nD.shape
    return n, D
