"""Whether two sides compute the same: compared before anything is timed. Imports no torch; arrays or tensors do."""

from __future__ import annotations

from typing import Any

from hyena_ds.bench.processes import WrongValue

TOLERANCE = 1e-5
"""Largest relative error of a loss in float32."""
GRADIENT_TOLERANCE = 1e-4
"""The error that a gradient may have, relative to its largest element: a sum over a thousand tokens whose terms nearly cancel."""
BFLOAT16_TOLERANCE = 1e-2
"""The error that a loss may have with bfloat16 projections against float32 ones."""


def check_loss(found: float, wanted: float, what: str, precisions: tuple[str, ...] = ()) -> None:
    """Raise WrongValue unless the losses agree, in float32 or with one of them in bfloat16."""
    tolerance = BFLOAT16_TOLERANCE if "bfloat16" in precisions else TOLERANCE
    error = abs(found - wanted) / max(abs(wanted), 1e-30)
    if not error <= tolerance:
        raise WrongValue(
            f"loss of {what}: found {found:.8g}, wanted {wanted:.8g} within {tolerance:.0e}; nothing was timed: report it"
        )


def check_gradients(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Raise WrongValue unless every gradient agrees, relative to its own largest element."""
    for name, gradient in wanted.items():
        error = float(abs(found[name] - gradient).max()) / max(float(abs(gradient).max()), 1e-30)
        if not error <= GRADIENT_TOLERANCE:
            raise WrongValue(
                f"gradient of {name}, {what}: found a relative error of {error:.1e}, wanted at most "
                f"{GRADIENT_TOLERANCE:.0e}; nothing was timed: report it"
            )
