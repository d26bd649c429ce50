"""Reading what a run records while it trains, also of one that is under way or was killed. Takes no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """Rows of a file of JSON lines; none where it is missing, and without a line that is not whole."""
    rows = []
    for line in read_text(file).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_text(file: Path) -> str:
    """Empty where it is missing; what is no UTF-8 is replaced."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def training_time(steps: list[Row]) -> tuple[float, int]:
    """Seconds of the training steps among rows of metrics.jsonl, the wait for their data included, validations and
    checkpoints not; and the tokens of these steps."""
    seconds, tokens = 0.0, 0
    for row in steps:
        if row.get("tokens_per_second") and row["tokens"] > tokens:
            seconds += (row["tokens"] - tokens) / row["tokens_per_second"] + (row.get("input_wait_seconds") or 0.0)
            tokens = row["tokens"]
    return seconds, tokens
