"""Rows of a measurement on a card: each stands alone, so that a failure is a row too, and the others go on."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CARD = torch.cuda.is_available()
"""Without a card the same rows run on the CPU with small numbers: a dry run, whose times say nothing."""
DEVICE = torch.device("cuda", 0) if CARD else torch.device("cpu")
OUT = Path(os.environ.get("OUT", "runs/card"))


class Rows:
    """What was found, by name; printed, and written to `OUT`/NAME.json after every row."""

    def __init__(self, name: str):
        OUT.mkdir(parents=True, exist_ok=True)
        self._path = OUT / f"{name}.json"
        self._found: dict[str, Any] = {}
        self.failed: list[str] = []
        described = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if CARD else "CPU (dry run)"
        self.add("machine", lambda: f"{described}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")

    def add(self, name: str, work: Callable[[], Any]) -> None:
        """Run `work` and keep what it returns, or its error. ONLY in the environment, a regular expression, chooses rows."""
        if not re.search(os.environ.get("ONLY", ""), name):
            return
        began = time.perf_counter()
        try:
            found = work()
        except Exception as error:
            traceback.print_exc(limit=4)
            found = f"FAILED {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            self.failed.append(name)
        self._found[name] = found
        print(f"{name}: {found}   [{time.perf_counter() - began:.1f} s]", flush=True)
        self._path.write_text(json.dumps(self._found, indent=1, default=str) + "\n", encoding="utf-8")
        if CARD:
            torch.cuda.empty_cache()

    def exit_code(self) -> int:
        """1 where a row failed."""
        print("failed:", ", ".join(self.failed) or "none")
        return int(bool(self.failed))


def seconds(work: Callable[[], Any], calls: int = 10) -> float:
    """Median of device events round single calls, after two that are not counted."""
    if not CARD:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    work()
    work()
    times = []
    for _ in range(calls):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


def relative_norm(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted|, in float64."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm())
