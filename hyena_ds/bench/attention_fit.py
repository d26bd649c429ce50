"""What a Transformer's step would take at contexts where nobody waits for it: its measured steps, carried on. Imports no torch.

    seconds(L) = a L + b L^2,   a, b by least squares of relative errors over the measured contexts

The L^2 is of attention's products, the rest grows with L. How far the fit can be trusted is said by two errors: the
largest at a measured context, and how far a fit of all but the longest misses the longest.

L context length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyena_ds.bench.report import Row
from hyena_ds.text import number

LEAST = 3
"""Measured contexts below which there is no fit: two would always be met exactly."""


def fit(lengths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """(a, b) of seconds(L) = a L + b L^2, each measured value weighing the same."""
    L = np.asarray(lengths, dtype=np.float64)
    shares = np.stack([L, L**2], axis=1) / np.asarray(seconds, dtype=np.float64)[:, None]
    a, b = np.linalg.lstsq(shares, np.ones(len(L)), rcond=None)[0]
    return float(a), float(b)


def carried_on(rows: Sequence[Row], clock: str) -> list[str]:
    """Lines that say each Transformer's fit, its errors, and its ratio to the first side where that was measured longer.

    `clock` is a row's "cpu_seconds", for which what else runs on the machine counts less, or on a device "wall_seconds".
    Nothing where there are fewer than LEAST contexts of a Transformer.
    """

    def seconds(row: Row) -> float:
        return float(row[clock]["median"])

    measured = [row for row in rows if row["status"] == "measured"]
    lines = []
    for side in dict.fromkeys(row["side"] for row in measured if row["kind"] == "transformer"):
        points = {row["context_length"]: seconds(row) for row in measured if row["side"] == side}
        if len(points) < LEAST:
            continue
        lengths = sorted(points)
        a, b = fit(lengths, [points[length] for length in lengths])
        inside = max(abs(_at(a, b, length) / points[length] - 1) for length in lengths)
        shorter = fit(lengths[:-1], [points[length] for length in lengths[:-1]])
        beyond = _at(*shorter, lengths[-1]) / points[lengths[-1]] - 1
        lines.append(
            f"{side}: seconds = {a:.3g} L + {b:.3g} L^2 from {', '.join(f'{length:,}' for length in lengths)} tokens, "
            f"within {inside:.1%} of each; without the longest, it is missed by {beyond:+.1%}"
        )
        ours = next(row["side"] for row in measured if row["kind"] != "transformer")
        lines += [
            f"{side}: {number(_at(a, b, row['context_length']))} s at {row['context_length']:,} tokens, carried on and not "
            f"measured; {ours} was measured there at {number(seconds(row))} s: "
            f"{_at(a, b, row['context_length']) / seconds(row):,.0f} times"
            for row in measured
            if row["side"] == ours and row["context_length"] > lengths[-1]
        ]
    return lines


def _at(a: float, b: float, length: int) -> float:
    return a * length + b * length**2
