"""The names under which a row's numbers go to TensorBoard and to DeepSpeed's monitors.

    row of metrics.jsonl --> [("train/loss", 1.31), ("by_stage/0_context_512/loss", 1.31), ("speed/tokens_per_second", ...), ...]

What stands before the first slash is a group of charts. Takes no torch.
"""

from __future__ import annotations

from typing import Any

Scalar = tuple[str, float]

_STEP = {
    "loss": "train/loss",
    "perplexity": "train/perplexity",
    "bits_per_base": "train/bits_per_base",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "loss_spike": "train/loss_spike",
    "skipped": "train/skipped",
    "tokens_per_second": "speed/tokens_per_second",
    "exchange_share": "speed/exchange_share",
    "input_wait_seconds": "speed/input_wait_seconds",
    "peak_memory_gib": "memory/peak_gib",
    "tokens": "schedule/tokens",
    "stage": "schedule/stage",
    "context_length": "schedule/context_length",
}
_QUALITY = ("loss", "perplexity", "bits_per_base")


def of_step(row: dict[str, Any]) -> list[Scalar]:
    """Of a training step, its quality by stage too."""
    stage = f"by_stage/{row['stage']}_context_{row['context_length']}"
    named = {name: row.get(column) for column, name in _STEP.items()}
    named |= {f"{stage}/{column}": row.get(column) for column in _QUALITY}
    return _there(named)


def of_validation(row: dict[str, Any], at_final: bool) -> list[Scalar]:
    """Of a validation: of the stage under way or `at_final`, and by context length whichever it was."""
    group = "validation_final_context" if at_final else "validation"
    by_context = f"validation_by_context/{row['context_length']}"
    named = {
        f"{place}/{column}": row.get(f"validation_{column}") for place in (group, by_context) for column in _QUALITY
    }
    return _there(named)


def _there(named: dict[str, Any]) -> list[Scalar]:
    """Without what a row does not have, or has as null."""
    return [(name, float(value)) for name, value in named.items() if value is not None]
