"""Steps of the published shape (width 256, 8 layers) from 1k to 4 M tokens on one card, and where their time goes.

python -m bench.card.steps              (small without a card: a dry run)
"""

from __future__ import annotations

import sys

import torch

from bench.card.model_step import timed_step, training_step
from bench.card.rows import CARD, OUT, Rows

_STEPS = (
    (1024, 16, ("fastest", "leanest")),
    (1024, 128, ("fastest",)),
    (16_384, 8, ("fastest",)),
    (131_072, 1, ("fastest", "lean", "leanest")),
    (1 << 20, 1, ("fastest", "lean", "leanest")),
    (1 << 22, 1, ("leanest",)),
)
_SMALL = ((256, 1, ("fastest", "leanest")),)
_PROFILED = ((1 << 20, "lean"), (131_072, "fastest"), (1024, "fastest")) if CARD else ((256, "fastest"),)


def profile(length: int, policy: str) -> str:
    """The kernels that take most of a step; the whole table is written to a file."""
    step = training_step(length, 1, policy, torch.bfloat16)
    step()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA] if CARD else [activity.CPU]) as profiler:
        step()
        if CARD:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    by = "self_device_time_total" if CARD else "self_cpu_time_total"
    table = averages.table(sort_by=by, row_limit=60, max_name_column_width=100)
    (OUT / f"profile-{length}-{policy}.txt").write_text(table, encoding="utf-8")
    longest = sorted(averages, key=lambda event: -getattr(event, by))[:16]
    total = sum(getattr(event, by) for event in averages)
    shares = [f"{getattr(event, by) / total:.0%} {event.count}x {event.key[:60]}" for event in longest]
    return f"{total / 1e3:.1f} ms in {sum(event.count for event in averages)} kernels; " + "; ".join(shares)


def main() -> int:
    """Run all rows; 1 where one failed."""
    rows = Rows("steps")
    for length, batch, policies in _STEPS if CARD else _SMALL:
        for policy in policies:
            rows.add(
                f"step of {batch} x {length:,}, {policy}, bfloat16",
                lambda L=length, B=batch, p=policy: timed_step(L, B, p, torch.bfloat16),
            )
    for length, batch in ((1024, 16), (16_384, 8)) if CARD else ():
        rows.add(
            f"step of {batch} x {length:,}, fastest, bfloat16, as a CUDA graph",
            lambda L=length, B=batch: timed_step(L, B, "fastest", torch.bfloat16, graph=True),
        )
    if CARD:
        rows.add(f"step of 1 x {1 << 20:,}, lean, float32", lambda: timed_step(1 << 20, 1, "lean", torch.float32))
    for length, policy in _PROFILED:
        rows.add(f"profile of 1 x {length:,}, {policy}", lambda L=length, p=policy: profile(L, p))
    return rows.exit_code()


if __name__ == "__main__":
    sys.exit(main())
