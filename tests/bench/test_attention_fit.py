"""A Transformer's steps carried on to contexts where they were not timed."""

from __future__ import annotations

from typing import Any

import pytest

from hyena_ds.bench.attention_fit import carried_on, fit

LENGTHS = (32768, 65536, 131072)


def row(kind: str, length: int, seconds: float, status: str = "measured") -> dict[str, Any]:
    times = {"median": seconds}
    named = {"kind": kind, "side": kind, "context_length": length, "status": status}
    return named | ({"cpu_seconds": times, "wall_seconds": {"median": 2 * seconds}} if status == "measured" else {})


def quadratic(length: int) -> float:
    return 2e-5 * length + 3e-9 * length**2


def test_a_fit_finds_both_coefficients() -> None:
    assert fit(LENGTHS, [quadratic(length) for length in LENGTHS]) == pytest.approx((2e-5, 3e-9))


def test_the_ratio_is_of_a_step_that_was_measured_and_one_carried_on() -> None:
    rows = [row("hyena-ds", length, 4e-5 * length) for length in (*LENGTHS, 2**20)]
    rows += [row("transformer", length, quadratic(length)) for length in LENGTHS]
    rows.append(row("transformer", 2**20, 0, "skipped: about 55 minutes"))
    said, million = carried_on(rows, "cpu_seconds")
    assert said.startswith(
        "transformer: seconds = 2e-05 L + 3e-09 L^2 from 32,768, 65,536, 131,072 tokens, within 0.0% of each; without the longest"
    )
    assert million == (
        "transformer: 3,320 s at 1,048,576 tokens, carried on and not measured; hyena-ds was measured there at 41.9 s: 79 times"
    )
    assert "6,639 s" in carried_on(rows, "wall_seconds")[1]  # another clock, other seconds


def test_errors_of_a_fit_are_those_of_the_points() -> None:
    rows = [row("hyena-ds", length, 1.0) for length in LENGTHS]
    rows += [row("transformer", length, 1e-9 * length**3 / 1e5) for length in LENGTHS]  # grows faster than the square
    (said,) = carried_on(rows, "cpu_seconds")
    assert "missed by -37.5%" in said and "within 0" not in said  # 40 where 4 x 4 x 4 is right
    assert not carried_on(rows[:-1], "cpu_seconds")  # two points of a Transformer: any line meets them
