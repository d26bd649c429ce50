"""Kernels of long_convolution.py, which says how they fit together: radix-2 butterflies over the points that a thread holds.

Arithmetic is float32; complex numbers lie in two planes.
"""

# ruff: noqa: RUF005  (Triton's tuples grow by addition only)

import triton
import triton.language as tl

from hyena_ds.ops.triton.packing import in_pieces
from hyena_ds.ops.triton.waves import of_part


@triton.jit
def _turned_difference(a_re, a_im, b_re, b_im, W: tl.constexpr, CIRCLE: tl.constexpr, SIGN: tl.constexpr):
    """(a - b) times point W of the circle."""
    re = a_re - b_re
    im = a_im - b_im
    if W == 0:
        return re, im
    else:
        return (
            re * CIRCLE[0][W] - im * (CIRCLE[1][W] * SIGN),
            re * (CIRCLE[1][W] * SIGN) + im * CIRCLE[0][W],
        )


@triton.jit
def _butterflies(re, im, R: tl.constexpr, STAGES: tl.constexpr, CIRCLE: tl.constexpr, SIGN: tl.constexpr):
    """The DFT over a thread's R points, in order; radix 2, decimated in frequency.

    No number has a name here: the interpreter makes a tensor of what is given one.
    """
    for stage in tl.static_range(STAGES):
        new_re = ()
        new_im = ()
        for i in tl.static_range(R):
            if (i // (R >> (stage + 1))) % 2 == 0:
                new_re = new_re + (re[i] + re[i + (R >> (stage + 1))],)
                new_im = new_im + (im[i] + im[i + (R >> (stage + 1))],)
            else:
                d_re, d_im = _turned_difference(
                    re[i - (R >> (stage + 1))], im[i - (R >> (stage + 1))], re[i], im[i],
                    (i % (R >> (stage + 1))) << stage, CIRCLE, SIGN,
                )  # fmt: skip
                new_re = new_re + (d_re,)
                new_im = new_im + (d_im,)
        re = new_re
        im = new_im
    in_order_re = ()
    in_order_im = ()
    for k in tl.static_range(R):
        in_order_re = in_order_re + (re[CIRCLE[2][k]],)
        in_order_im = in_order_im + (im[CIRCLE[2][k]],)
    return in_order_re, in_order_im


@triton.jit
def _powers(c, s, R: tl.constexpr):
    """(c + i s)^k for k < R; each by as few products as it has bits."""
    re = (c * 0.0 + 1.0, c)
    im = (s * 0.0, s)
    for k in tl.static_range(2, R):
        new_re = re[k // 2] * re[k - k // 2] - im[k // 2] * im[k - k // 2]
        new_im = re[k // 2] * im[k - k // 2] + im[k // 2] * re[k - k // 2]
        re = re + (new_re,)
        im = im + (new_im,)
    return re, im


@triton.jit
def _transform(
    re, im, real, imaginary, b, at_b, ka, at_a, ROW: tl.constexpr,
    R1: tl.constexpr, R2: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """The DFT of points a R2 + b, a thread's over a, to points ka + R1 kb, a thread's over kb.

    Points go to other threads through the planes, rows of ROW elements from `at_b` and `at_a` on. The program's own part
    of them is overwritten.
    """
    re, im = _butterflies(re, im, R1, CIRCLE1[3], CIRCLE1, SIGN)
    s, c = of_part(b, R1 * R2)
    turn_re, turn_im = _powers(c, s * SIGN, R1)
    tl.debug_barrier()
    for k in tl.static_range(R1):
        at = at_b + (k * R2 + b) * ROW
        tl.store(real + at, re[k] * turn_re[k] - im[k] * turn_im[k])
        tl.store(imaginary + at, re[k] * turn_im[k] + im[k] * turn_re[k])
    tl.debug_barrier()
    re = ()
    im = ()
    for k in tl.static_range(R2):
        at = at_a + (ka * R2 + k) * ROW
        re = re + (tl.load(real + at),)
        im = im + (tl.load(imaginary + at),)
    tl.debug_barrier()
    return _butterflies(re, im, R2, CIRCLE2[3], CIRCLE2, SIGN)


@triton.jit
def _store_turned(
    re, im, real, imaginary, at_a, ka, line, ROW: tl.constexpr,
    N: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, SIGN: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Write points ka + R1 kb of column, or row, `line`, turned by their product of N."""
    s, c = of_part(line * ka, N)
    c, s = c * SCALE, s * SCALE * SIGN
    step_s, step_c = of_part(line * R1, N)
    step_re, step_im = _powers(step_c, step_s * SIGN, R2)
    for k in tl.static_range(R2):
        turn_re = c * step_re[k] - s * step_im[k]
        turn_im = c * step_im[k] + s * step_re[k]
        at = at_a + (ka + R1 * k) * ROW
        tl.store(real + at, re[k] * turn_re - im[k] * turn_im)
        tl.store(imaginary + at, re[k] * turn_im + im[k] * turn_re)


@triton.jit
def down_kernel(
    x, x_B, x_g, x_P, l, out_real, out_imaginary, L, g,
    PIECES: tl.constexpr, REVERSE: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
    C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """Columns of the signal, transformed and turned."""
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before // C
    column = tl.program_id(0) * C + before % C
    channel = tl.program_id(1)
    x += tl.program_id(2).to(tl.int64) * x_B + channel.to(tl.int64) * x_g
    s, c = of_part(b * N2 + column, 4 * N1 * N2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        j = (a * R2 + b) * N2 + column
        at = in_pieces(L - 1 - j if REVERSE else j, x_P, l, PIECES)
        value = tl.load(x + at, mask=j < L, other=0.0).to(tl.float32)
        re = re + (value * (c * QUARTER[0][a] - s * QUARTER[1][a]),)
        im = im + (value * (c * QUARTER[1][a] + s * QUARTER[0][a]),)
    start = (tl.program_id(2) * g + channel).to(tl.int64) * (N1 * N2)
    out_real += start
    out_imaginary += start
    ka = after // C
    line = tl.program_id(0) * C + after % C
    re, im = _transform(
        re, im, out_real, out_imaginary, b, column, ka, line, N2, R1, R2, CIRCLE1, CIRCLE2, -1
    )  # fmt: skip
    _store_turned(re, im, out_real, out_imaginary, line, ka, line, N2, N1 * N2, R1, R2, -1, 1.0)


@triton.jit
def up_kernel(
    real, imaginary, y, y_B, y_g, y_P, l, L, g,
    PIECES: tl.constexpr, REVERSE: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
    C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    """Columns of the product, transformed back, to the signal."""
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before // C
    column = tl.program_id(0) * C + before % C
    channel = tl.program_id(1)
    start = (tl.program_id(2) * g + channel).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re = ()
    im = ()
    for a in tl.static_range(R1):
        at = (a * R2 + b) * N2 + column
        re = re + (tl.load(real + at),)
        im = im + (tl.load(imaginary + at),)
    ka = after // C
    line = tl.program_id(0) * C + after % C
    re, im = _transform(re, im, real, imaginary, b, column, ka, line, N2, R1, R2, CIRCLE1, CIRCLE2, 1)
    s, c = of_part(ka * N2 + line, 4 * N1 * N2)
    y += tl.program_id(2).to(tl.int64) * y_B + channel.to(tl.int64) * y_g
    for k in tl.static_range(R2):
        j = (ka + R1 * k) * N2 + line
        value = re[k] * (c * QUARTER[0][k] - s * QUARTER[1][k]) + im[k] * (c * QUARTER[1][k] + s * QUARTER[0][k])
        at = in_pieces(L - 1 - j if REVERSE else j, y_P, l, PIECES)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=j < L)


@triton.jit
def along_kernel(
    real, imaginary, g,
    N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr,
    CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    """Rows, transformed where they lie."""
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    at_b = (tl.program_id(0) * C + before // R2) * N2
    ka = after % R1
    at_a = (tl.program_id(0) * C + after // R1) * N2
    start = (tl.program_id(2) * g + tl.program_id(1)).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re = ()
    im = ()
    for a in tl.static_range(R1):
        re = re + (tl.load(real + at_b + a * R2 + b),)
        im = im + (tl.load(imaginary + at_b + a * R2 + b),)
    re, im = _transform(re, im, real, imaginary, b, at_b, ka, at_a, 1, R1, R2, CIRCLE1, CIRCLE2, -1)
    for k in tl.static_range(R2):
        tl.store(real + at_a + ka + R1 * k, re[k])
        tl.store(imaginary + at_a + ka + R1 * k, im[k])


@triton.jit
def through_kernel(
    real, imaginary, k_real, k_imaginary, g,
    N1: tl.constexpr, N2: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr,
    CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    """Rows of the signal, transformed, multiplied by those of the filter, and transformed back."""
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    row_b = tl.program_id(0) * C + before // R2
    ka = after % R1
    row_a = tl.program_id(0) * C + after // R1
    start = (tl.program_id(2) * g + tl.program_id(1)).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    k_start = tl.program_id(1).to(tl.int64) * (N1 * N2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        re = re + (tl.load(real + row_b * N2 + a * R2 + b),)
        im = im + (tl.load(imaginary + row_b * N2 + a * R2 + b),)
    re, im = _transform(re, im, real, imaginary, b, row_b * N2, ka, row_a * N2, 1, R1, R2, CIRCLE1, CIRCLE2, -1)
    out_re = ()
    out_im = ()
    for k in tl.static_range(R2):
        at = k_start + row_a * N2 + ka + R1 * k
        kr = tl.load(k_real + at)
        ki = tl.load(k_imaginary + at)
        out_re = out_re + (re[k] * kr - im[k] * ki,)
        out_im = out_im + (re[k] * ki + im[k] * kr,)
    # Points ka + R1 kb are a' R2' + b' with R1 and R2 exchanged: nothing moves before the way back.
    re, im = _transform(
        out_re, out_im, real, imaginary, ka, row_a * N2, b, row_b * N2, 1, R2, R1, CIRCLE2, CIRCLE1, 1
    )  # fmt: skip
    _store_turned(re, im, real, imaginary, row_b * N2, b, row_b, 1, N1 * N2, R2, R1, 1, 1.0 / (N1 * N2))


@triton.jit
def product_kernel(
    x_real, x_imaginary, y_real, y_imaginary, real, imaginary, g,
    TERMS: tl.constexpr, SHARED: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    R1: tl.constexpr, R2: tl.constexpr, C: tl.constexpr, CIRCLE1: tl.constexpr, CIRCLE2: tl.constexpr,
):  # fmt: skip
    """The product of two spectra, summed over the batch."""
    before = tl.arange(0, R2 * C)
    after = tl.arange(0, R1 * C)
    b = before % R2
    at_b = (tl.program_id(0) * C + before // R2) * N2
    ka = after % R1
    row_a = tl.program_id(0) * C + after // R1
    channel = tl.program_id(1)
    sequence = tl.program_id(2)
    re = ()
    im = ()
    for a in tl.static_range(R1):
        sum_re = tl.zeros((R2 * C,), tl.float32)
        sum_im = tl.zeros((R2 * C,), tl.float32)
        for term in tl.static_range(TERMS):
            at_x = ((sequence + term) * g + channel).to(tl.int64) * (N1 * N2) + at_b + a * R2 + b
            at_y = channel.to(tl.int64) * (N1 * N2) + at_b + a * R2 + b if SHARED else at_x
            xr, xi = tl.load(x_real + at_x), tl.load(x_imaginary + at_x)
            yr, yi = tl.load(y_real + at_y), tl.load(y_imaginary + at_y)
            sum_re += xr * yr - xi * yi
            sum_im += xr * yi + xi * yr
        re = re + (sum_re,)
        im = im + (sum_im,)
    start = (sequence * g + channel).to(tl.int64) * (N1 * N2)
    real += start
    imaginary += start
    re, im = _transform(re, im, real, imaginary, b, at_b, ka, row_a * N2, 1, R1, R2, CIRCLE1, CIRCLE2, 1)
    _store_turned(re, im, real, imaginary, row_a * N2, ka, row_a, 1, N1 * N2, R1, R2, 1, 1.0 / (N1 * N2))
