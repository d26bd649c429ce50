"""The names under which a row's numbers go to TensorBoard and to DeepSpeed's monitors.

    row of metrics.jsonl --> [("train/loss", 1.31), ("by_stage/0_context_512/loss", 1.31), ("speed/tokens_per_second", ...), ...]

What stands before the first slash is a group of charts. Takes no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Scalar = tuple[str, float]

_STEP = {
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "loss_spike": "train/loss_spike",
    "skipped": "train/skipped",
    "tokens_per_second": "speed/tokens_per_second",
    "exchange_share": "speed/exchange_share",
    "input_wait_seconds": "speed/input_wait_seconds",
    "mfu": "speed/mfu",
    "limit_share": "speed/limit_share",
    "compute_seconds": "ranks/compute_seconds",
    "wait_seconds": "ranks/wait_seconds",
    "slowest_rank": "ranks/slowest_rank",
    "slowest_times": "ranks/slowest_times",
    "peak_memory_gib": "memory/peak_gib",
    "tokens": "schedule/tokens",
    "stage": "schedule/stage",
    "context_length": "schedule/context_length",
}
_VALIDATION = "validation_"
"""What the columns of a validation's quality begin with."""


def of_step(row: dict[str, Any], quality: Iterable[str]) -> list[Scalar]:
    """The scalars of a training step; those of the columns `quality` by stage too."""
    stage = f"by_stage/{row['stage']}_context_{row['context_length']}"
    named = {f"{group}/{column}": row.get(column) for group in ("train", stage) for column in quality}
    return _there(named | {name: row.get(column) for column, name in _STEP.items()})


def of_validation(row: dict[str, Any], at_final: bool) -> list[Scalar]:
    """The scalars of a validation: of the stage under way or `at_final`, and by context length whichever it was."""
    group = "validation_final_context" if at_final else "validation"
    by_context = f"validation_by_context/{row['context_length']}"
    quality = {
        column.removeprefix(_VALIDATION): value for column, value in row.items() if column.startswith(_VALIDATION)
    }
    return _there({f"{place}/{column}": value for place in (group, by_context) for column, value in quality.items()})


def _there(named: dict[str, Any]) -> list[Scalar]:
    """Without what a row does not have, or has as null."""
    return [(name, float(value)) for name, value in named.items() if value is not None]
