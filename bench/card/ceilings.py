"""What a card reaches at best: copies, products and transforms of the sizes that a step has.

python -m bench.card.ceilings           (small without a card: a dry run)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.card.rows import CARD, DEVICE, Rows, relative_norm, seconds

_COPIED = 1 << (28 if CARD else 20)
_TILE = 131_072 if CARD else 1_024
_POINTS = 1 << (21 if CARD else 14)
_ROWS = 32 if CARD else 4


def copy_rate() -> float:
    """Bytes a second, read and written."""
    source = torch.randn(_COPIED, device=DEVICE)
    target = torch.empty_like(source)
    return 8.0 * _COPIED / seconds(lambda: target.copy_(source))


def product(dtype: torch.dtype, rows: int, inner: int, columns: int) -> str:
    """Rate and time of (rows, inner) x (inner, columns)."""
    a, b = torch.randn(rows, inner, device=DEVICE).to(dtype), torch.randn(inner, columns, device=DEVICE).to(dtype)
    took = seconds(lambda: a @ b)
    return f"{2 * rows * inner * columns / took / 1e12:.1f} TF/s, {took * 1e3:.3f} ms"


def weight_gradient(out_dtype: torch.dtype | None) -> str:
    """A tile's weight gradient in bfloat16, whose sum over the tile is rounded to bfloat16 or is not."""
    a = torch.randn(1024, _TILE, device=DEVICE).bfloat16()
    b = torch.randn(_TILE, 256, device=DEVICE).bfloat16()
    more: dict[str, Any] = {} if out_dtype is None else {"out_dtype": out_dtype}
    took = seconds(lambda: torch.mm(a, b, **more))
    error = relative_norm(torch.mm(a, b, **more), a.double() @ b.double())
    return f"{2 * 1024 * _TILE * 256 / took / 1e12:.1f} TF/s, {took * 1e3:.3f} ms, relative error {error:.1e}"


def transform(kind: str, points: int, rows: int, rate: float) -> str:
    """Time of a transform, how often it could have copied its data meanwhile, and the memory it takes."""
    x = torch.randn(rows, points, device=DEVICE)
    spectrum = torch.fft.rfft(x)
    complex_x = torch.complex(x, x.clone()) if kind == "complex" else None
    works: dict[str, Callable[[], torch.Tensor]] = {
        "real": lambda: torch.fft.rfft(x),
        "inverse": lambda: torch.fft.irfft(spectrum, n=points),
        "inverse without 1/n": lambda: torch.fft.irfft(spectrum, n=points, norm="forward"),
        "complex": lambda: torch.fft.fft(complex_x),
    }
    size = rows * points * (8 if kind == "complex" else 4)
    held = 0.0
    if CARD:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    took = seconds(works[kind])
    if CARD:
        held = (torch.cuda.max_memory_allocated() - before) / size
    flops = (5.0 if kind == "complex" else 2.5) * points * math.log2(points) * rows
    return (
        f"{took * 1e3:.2f} ms, {flops / took / 1e12:.2f} TF/s, {took * rate / (2 * size):.1f} copies of its data, "
        f"{held:.1f} times its data held"
    )


def main() -> int:
    """Run all rows; 1 where one failed."""
    rows = Rows("ceilings")
    rate = copy_rate()
    rows.add("copy", lambda: f"{rate / 1e12:.2f} TB/s")
    bfloat16, float32 = torch.bfloat16, torch.float32
    products = [(bfloat16, 8192, 8192, 8192), (float32, 8192, 8192, 8192)] if CARD else []
    products += [(bfloat16, _TILE, 256, 1024), (bfloat16, _TILE, 1024, 256), (bfloat16, _TILE, 256, 768)]
    products += [(float32, _TILE, 64, 64), (float32, _TILE, 64, 256)]
    for dtype, *shape in products:
        name = str(dtype).removeprefix("torch.")
        rows.add(f"product {name} {' x '.join(map(str, shape))}", lambda d=dtype, s=shape: product(d, *s))
    rows.add("weight gradient of a tile, bfloat16 out", lambda: weight_gradient(None))
    if CARD:
        rows.add("weight gradient of a tile, float32 out", lambda: weight_gradient(float32))
    sizes = [(_POINTS, _ROWS), (_POINTS, 2), (1 << 16 if CARD else 1 << 10, 16 * _ROWS)]
    for kind in ("real", "inverse", "inverse without 1/n", "complex"):
        for points, batch in sizes if kind != "inverse without 1/n" else sizes[:1]:
            rows.add(f"{kind} transform {points} x {batch}", lambda k=kind, n=points, b=batch: transform(k, n, b, rate))
    if CARD:
        for kind, points, batch in (("real", 2_000_000, 32), ("inverse", 2_000_000, 32), ("real", 1 << 24, 4)):
            rows.add(f"{kind} transform {points} x {batch}", lambda k=kind, n=points, b=batch: transform(k, n, b, rate))
    return rows.exit_code()


if __name__ == "__main__":
    sys.exit(main())
