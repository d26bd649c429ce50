"""`hyena-ds bench plan`: what `hyena-ds plan --device this` predicts beside what the trainer's step takes on this machine.

    calibration (measured first, at other contexts and grids) --predict--> seconds, GiB
    the trainer's own step through the engine, in real processes --------> seconds, GiB  --> a row each, errors

Contexts and grids of TABLE were not calibrated on. Rows that --json already holds of the same machine are kept, and
predicted anew by the calibration, so that the table may be measured in pieces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hyena_ds.bench.case import Case
from hyena_ds.bench.limits import say
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, save
from hyena_ds.config.policy import PolicyName
from hyena_ds.cost.devices import GIB, Cluster
from hyena_ds.errors import UserError
from hyena_ds.planning.calibration import (
    STEPS,
    calibrate,
    calibration_case,
    machine_device,
    measure_step,
    read_calibration,
    write_calibration,
)
from hyena_ds.planning.forecast import predict
from hyena_ds.text import number

TABLE: tuple[tuple[int, PolicyName, int], ...] = (
    (1024, "balanced", 5),
    (4096, "fastest", 5),
    (16384, "balanced", 5),
    (65536, "lean", 3),
    (262144, "balanced", 2),
    (1048576, "leanest", 1),
)
"""Context length, policy, and timed steps, which one more goes before."""
MEMORY_BOUND, TIME_BOUND = 0.15, 0.25
"""Largest errors, relative to what was measured, of a prediction that holds."""


_OF_A_CASE = ("context_length", "sequence_parallel", "policy", "width", "layers", "threads")


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each context length and grid."""
    unknown = sorted(set(options.context_length) - {length for length, _, _ in TABLE})
    if unknown:
        raise UserError(
            f"--context-length: found {unknown[0]}, wanted lengths of the table: {', '.join(str(row[0]) for row in TABLE)}"
        )
    path = Path(options.calibration)
    if path.exists():
        calibration = read_calibration(path)
    else:
        calibration = calibrate(max(options.sequence_parallel))
        write_calibration(path, calibration)
    machine = calibration["machine"]
    rows = _rows_so_far(options.json, calibration)
    for length, policy, rounds in TABLE:
        for sp in options.sequence_parallel:
            if length not in options.context_length:
                continue
            case = calibration_case(length, sp, policy, calibration["width"])
            say(f"measuring {rounds} steps of {length:,} tokens on {sp} rank{'s' if sp > 1 else ''}, {policy}")
            measured = measure_step(case, rounds)
            rows[length, sp] = row_of(case, measured, calibration)
            save(options.json, machine, [rows[key] for key in sorted(rows)])
    table = [rows[key] for key in sorted(rows)]
    lengths = ", ".join(f"{length:,}" for length, _ in STEPS)
    calibrated = f"calibrated {calibration['date']} at {lengths} tokens on 1 and 2 ranks"
    print_table(_COLUMNS, table, *within_bounds(table), f"{describe_machine(machine)}; {calibrated}")
    return table, machine


def row_of(case: Case, measured: dict[str, Any], calibration: dict[str, Any]) -> Row:
    """Measured beside predicted; errors are of the prediction, relative to what was measured."""
    sp = case.sequence_parallel
    predicted = predict(case, Cluster(1, sp, machine_device(calibration, sp)))
    seconds, gib = predicted.time.seconds, predicted.memory.total / GIB
    return {
        "side": f"{case.context_length:,} tokens, sp {sp}",
        "status": "measured",
        **{name: getattr(case, name) for name in _OF_A_CASE},
        **{name: measured[name] for name in ("wall_seconds", "cpu_seconds", "peak_memory_gib")},
        "predicted_seconds": seconds,
        "predicted_parts": predicted.time.parts,
        "predicted_gib": gib,
        "predicted_memory": {part: size / GIB for part, size in predicted.memory.parts.items()},
        "time_error": seconds / measured["wall_seconds"]["median"] - 1,
        "memory_error": gib / measured["peak_memory_gib"] - 1,
        "calibration": calibration["date"],
    }


def within_bounds(rows: list[Row]) -> list[str]:
    """How many rows hold, and the worst of each kind."""
    lines = []
    for what, key, bound in (("memory", "memory_error", MEMORY_BOUND), ("time", "time_error", TIME_BOUND)):
        held = sum(abs(row[key]) <= bound for row in rows)
        worst = max(rows, key=lambda row: abs(row[key]))
        lines.append(
            f"{what} within {bound:.0%}: {held} of {len(rows)} rows; furthest off {worst[key]:+.0%}, at {worst['side']}"
        )
    return lines


def _rows_so_far(path: str | None, calibration: dict[str, Any]) -> dict[tuple[int, int], Row]:
    if path is None or not Path(path).exists():
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["machine"] != calibration["machine"]:
            return {}
        kept = {(row["context_length"], row["sequence_parallel"]): row for row in found["rows"]}
        return {
            (length, sp): row_of(calibration_case(length, sp, row["policy"], calibration["width"]), row, calibration)
            for (length, sp), row in kept.items()
        }
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--json {path}: not a result of `hyena-ds bench plan`; name another file") from None


_COLUMNS: list[Column] = [
    ("step", lambda row: row["side"]),
    ("policy", lambda row: row["policy"]),
    ("threads", lambda row: str(row["threads"])),
    ("predicted s", lambda row: number(row["predicted_seconds"])),
    ("measured s", lambda row: number(row["wall_seconds"]["median"])),
    ("error", lambda row: f"{row['time_error']:+.0%}"),
    ("predicted GiB", lambda row: number(row["predicted_gib"])),
    ("measured GiB", lambda row: number(row["peak_memory_gib"])),
    ("error", lambda row: f"{row['memory_error']:+.0%}"),
]
