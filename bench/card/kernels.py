"""Every Triton kernel on this machine's device: held against float64 on odd shapes, and timed beside the portable code.

    python bench/card/kernels.py [--only WORD] [--json PATH]

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
from typing import Any

import torch

ON_CARD = torch.cuda.is_available()
if not ON_CARD:
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from hyena_ds.model.filter_kernel import FILTER_CASES  # noqa: E402
from hyena_ds.ops.triton.cases import CASES, Case, Sizes, exact, random_tensors  # noqa: E402

DEVICE = torch.device("cuda" if ON_CARD else "cpu")
ODD = ((2, 1_031, 256, 1_024), (1, 4_096, 128, 512), (3, 77, 40, 168)) if ON_CARD else ((2, 37, 8, 24), (1, 5, 16, 64))
"""Batch, tokens, width, inner width of the checks."""
LARGE = (1, 1 << 20, 256, 1_024) if ON_CARD else (1, 64, 8, 32)
"""Of the times."""
TOLERANCES = {torch.bfloat16: 2.0**-7, torch.float32: 2e-5}
"""Largest difference from float64, relative to the largest value, by the type of a result."""
TIMES = 20 if ON_CARD else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels whose name has this in it")
    parser.add_argument("--json", type=Path, help="where the rows go")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    import triton

    name = torch.cuda.get_device_name(DEVICE) if ON_CARD else "CPU, interpreter, small shapes: times mean nothing"
    print(f"{name}; torch {torch.__version__}, triton {triton.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for case in (*CASES, *FILTER_CASES):
        for dtype in (torch.bfloat16, torch.float32):
            if arguments.only in case.name and not (case in FILTER_CASES and dtype == torch.bfloat16):
                rows.append(row(case, dtype))
                print(sentence(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))
    return 0 if all(each["right"] for each in rows) else 1


def row(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """What was found of one kernel in one precision; a failure is a row too."""
    found: dict[str, Any] = {"kernel": case.name, "precision": str(dtype).removeprefix("torch."), "right": False}
    try:
        found["worst"], found["where"] = check(case, dtype)
        found["right"] = found["worst"] <= 1.0
        found |= times(case, dtype)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        traceback.print_exc()
    finally:
        if ON_CARD:
            torch.cuda.empty_cache()
    return found


def check(case: Case, dtype: torch.dtype) -> tuple[float, str]:
    """The worst result's difference from float64 as a share of what is tolerated, and which result it is."""
    worst, where = 0.0, ""
    for number, shape in enumerate(ODD):
        tensors = random_tensors(case, Sizes(*shape, dtype, DEVICE), seed=number)
        for name, result, wanted in zip(case.results, case.kernel(*tensors), exact(case, tensors), strict=True):
            assert result.shape == wanted.shape, f"{name}: {tuple(result.shape)}, wanted {tuple(wanted.shape)}"
            difference = float((result.double() - wanted).abs().max() / wanted.abs().max())
            share = difference / TOLERANCES[result.dtype]
            if not share <= worst:  # NaN too
                worst, where = share, f"{name} at {shape}: {difference:.1e}"
    return worst, where


def times(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Median milliseconds of the kernel and of the portable code, and bytes a second of what the kernel declares."""
    tensors = random_tensors(case, Sizes(*LARGE, dtype, DEVICE), seed=1)
    moved = case.traffic(*tensors).total
    ours = median_ms(lambda: case.kernel(*tensors))
    found = {"bytes": moved, "ms": ours, "gb_per_s": moved / ours / 1e6}
    try:
        found["portable_ms"] = median_ms(lambda: case.portable(*tensors))
    except torch.OutOfMemoryError:
        found["portable_ms"] = float("nan")
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
