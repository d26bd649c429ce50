"""Every Triton kernel on this machine's device: held against float64 on odd shapes, and timed beside the portable code.

    python bench/card/kernels.py [--only WORD] [--sweep] [--json PATH]

A row is printed whatever became of the others. Without a device it is a dry run: small shapes, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ON_CARD = torch.cuda.is_available()
if not ON_CARD:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from hyena_ds.model.filter_kernel import FILTER_CASES  # noqa: E402
from hyena_ds.ops.triton import cross_entropy, gates, gelu, long_convolution  # noqa: E402
from hyena_ds.ops.triton import filter as filter_kernels  # noqa: E402
from hyena_ds.ops.triton.case import Case, Sizes, exact, random_tensors  # noqa: E402
from hyena_ds.ops.triton.cases import CASES  # noqa: E402
from hyena_ds.ops.triton.long_convolution_cases import CONVOLUTION_CASES  # noqa: E402
from hyena_ds.ops.triton.packing_cases import PACKING_CASES  # noqa: E402
from hyena_ds.ops.triton.spectra_cases import SPECTRA_CASES  # noqa: E402

FLOAT32 = (*FILTER_CASES, *CONVOLUTION_CASES, *SPECTRA_CASES)
ALL = (*CASES, *PACKING_CASES, *FLOAT32)
DEVICE = torch.device("cuda" if ON_CARD else "cpu")
ODD = ((2, 1_031, 256, 1_024), (1, 4_096, 128, 512), (3, 77, 40, 168)) if ON_CARD else ((2, 37, 8, 24), (1, 5, 16, 64))
"""Batch, tokens, width, inner width of the checks."""
LONG = (
    ((1, 1 << 20, 4, 8), (2, 100_000, 3, 8), (1, 1 << 21, 2, 8), (1, 1 << 14, 8, 8)) if ON_CARD else ((1, 1_100, 1, 8),)
)
"""Shapes of the long convolution's checks, besides."""
LARGE = (1, 1 << 20, 256, 1_024) if ON_CARD else (1, 64, 4, 32)
"""The shape of the times."""
TOLERANCES = {torch.bfloat16: 2.0**-7, torch.float32: 2e-5}
"""Largest difference from float64, relative to the largest value, by the type of a result."""
TIMES = 20 if ON_CARD else 1
SWEEPS: tuple[tuple[str, ModuleType, tuple[dict[str, int | str], ...]], ...] = (
    ("gates", gates, tuple({"_BLOCK": b, "_WARPS": w} for b, w in ((128, 4), (256, 4), (256, 8), (512, 4), (1024, 4)))),
    ("gelu", gelu, tuple({"_ROWS": r, "_COLUMNS": c} for r, c in ((8, 128), (16, 128), (32, 128), (8, 256), (4, 512)))),
    ("norm, head", cross_entropy, tuple({"_ROWS": r, "_WARPS": w} for r, w in ((16, 4), (16, 8), (32, 8), (32, 16)))),
    ("filter", filter_kernels, tuple({"_CHANNELS": c, "_WARPS": w} for c, w in ((32, 4), (32, 8), (64, 8), (64, 16)))),
    (
        "long convolution",
        long_convolution,
        tuple(
            {"_COLUMNS": c, "_ROWS": r, "_WARPS": w}
            for c, r, w in ((8, 8, 8), (8, 8, 4), (16, 8, 16), (16, 4, 8), (8, 2, 4), (4, 4, 4))
        ),
    ),
)
"""Sizes of a program that --sweep tries in place of a module's own."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels whose name has this in it")
    parser.add_argument("--sweep", action="store_true", help="time other sizes of a program too, on a device")
    parser.add_argument("--json", type=Path, help="where the rows go")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    import triton

    name = torch.cuda.get_device_name(DEVICE) if ON_CARD else "CPU, interpreter, small shapes: times mean nothing"
    print(f"{name}; torch {torch.__version__}, triton {triton.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for case in ALL:
        for dtype in (torch.bfloat16, torch.float32):
            if arguments.only in case.name and not (case in FLOAT32 and dtype == torch.bfloat16):
                rows.append(row(case, dtype))
                print(sentence(rows[-1]), flush=True)
    if arguments.sweep and ON_CARD:
        rows += sweep(arguments.only)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))
    return 0 if all(each["right"] for each in rows) else 1


def row(case: Case, dtype: torch.dtype, portable: bool = True) -> dict[str, Any]:
    """What was found of one kernel in one precision; a failure is a row too."""
    found: dict[str, Any] = {"kernel": case.name, "precision": str(dtype).removeprefix("torch."), "right": False}
    try:
        found["worst"], found["where"] = check(case, dtype)
        found["right"] = found["worst"] <= 1.0
        found |= times(case, dtype, portable)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        traceback.print_exc()
    finally:
        if ON_CARD:
            torch.cuda.empty_cache()
    return found


def sweep(only: str) -> list[dict[str, Any]]:
    """Rows of bf16 cases with other sizes of a program, where a row's `sizes` says which."""
    found = []
    for word, module, settings in SWEEPS:
        for case in ALL:
            if not (case.name.startswith(word) and only in case.name):
                continue
            for sizes in settings:
                before = {name: getattr(module, name) for name in sizes}
                vars(module).update(sizes)
                found.append(row(case, torch.bfloat16, portable=False) | {"sizes": sizes})
                vars(module).update(before)
                print(sizes, sentence(found[-1]), flush=True)
    return found


def check(case: Case, dtype: torch.dtype) -> tuple[float, str]:
    """The worst result's difference from float64 as a share of what is tolerated, and which result it is."""
    worst, where = 0.0, ""
    shapes = ODD
    if case in CONVOLUTION_CASES:
        shapes = (*ODD, *LONG) if ON_CARD else LONG
    for number, shape in enumerate(shapes):
        tensors = random_tensors(case, Sizes(*shape, dtype, DEVICE), seed=number)
        for name, result, wanted in zip(case.results, case.kernel(*tensors), exact(case, tensors), strict=True):
            assert result.shape == wanted.shape, f"{name}: {tuple(result.shape)}, wanted {tuple(wanted.shape)}"
            difference = float((result.double() - wanted).abs().max() / wanted.abs().max())
            share = difference / TOLERANCES[result.dtype]
            if not share <= worst:  # NaN too
                worst, where = share, f"{name} at {shape}: {difference:.1e}"
    return worst, where


def times(case: Case, dtype: torch.dtype, portable: bool) -> dict[str, Any]:
    """Median milliseconds of the kernel and of the portable code, and bytes a second of what the kernel declares."""
    tensors = random_tensors(case, Sizes(*LARGE, dtype, DEVICE), seed=1)
    moved = case.traffic(*tensors).total
    ours = median_ms(lambda: case.kernel(*tensors))
    found = {"bytes": moved, "ms": ours, "gb_per_s": moved / ours / 1e6, "portable_ms": float("nan")}
    try:
        if not portable:
            return found
        found["portable_ms"] = median_ms(lambda: case.portable(*tensors))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    return found


def median_ms(work: Callable[[], Any]) -> float:
    """Milliseconds on the device; on a CPU of nothing that could matter."""
    if not ON_CARD:
        work()
        return 1.0
    for _ in range(3):
        work()
    taken = []
    for _ in range(TIMES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def sentence(found: dict[str, Any]) -> str:
    head = f"{found['kernel']:24} {found['precision']:9}"
    if "error" in found:
        return f"{head} FAILED: {found['error']}"
    verdict = "right" if found["right"] else "WRONG"
    return (
        f"{head} {verdict} ({found['where']})  {found['ms']:8.3f} ms {found['gb_per_s']:7.0f} GB/s"
        f"   portable {found['portable_ms']:8.3f} ms  {found['portable_ms'] / found['ms']:5.2f}x"
    )


if __name__ == "__main__":
    sys.exit(main())
