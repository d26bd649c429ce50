"""The largest numbers of a config: far above what anybody trains, and small enough to compute with.

Beyond them no machine could follow; and what a typing error makes of a number is refused before anything loops over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hyena_ds.config.loading import require
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

MOST_WIDTH = 65_536
MOST_LAYERS = 10_000
MOST_CONTEXT = 2**40
MOST_STAGES = 256
MOST_STEPS = 10**12
MOST_TOKENS = 10**18
MOST_SEQUENCES = 10**8
"""Sequences of one optimizer step."""
MOST_RANKS = 2**17
MOST_LOCAL_RANKS = 1024
"""Processes of one machine."""
MOST_WORKERS = 1024
"""Reading processes of a rank."""
MOST_SOURCES = 1024
MOST_SECONDS = 1e9
"""About 30 years."""
MOST = 1e12
"""Bounds a number that has no other bound."""


def whole_number(text: str) -> int:
    """What an option of the command line says. Raises ValueError, also for digits of other scripts."""
    if not text.isascii():
        raise ValueError(text)
    return int(text)


def check_count(option: str, value: int | None, most: int) -> None:
    """Raise UserError unless what an option of the command line says, if it is there, is 1 to `most`."""
    if value is not None and not 1 <= value <= most:
        raise UserError(f"{option}: found {in_one_line(str(value), MOST_QUOTED)}, wanted 1 to {most:,}")


_HOLDS: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda value: value >= 1,
    "0 or more": lambda value: value >= 0,
    "a positive number": lambda value: value > 0,
}


def require_each(config: object, wanted: str, *names: str) -> None:
    """Raise Invalid for the first of these fields of `config` that is there and not what is wanted, one of `_HOLDS`."""
    for name in names:
        value = getattr(config, name)
        require(value is None or _HOLDS[wanted](value), name, f"found {value}, wanted {wanted}")


def require_within(config: object, bounds: Mapping[str, float]) -> None:
    """Raise Invalid for the first field of `config` that is beyond its bound on either side, or not a number."""
    for name, most in bounds.items():
        value = getattr(config, name)
        bound = f"at most {most:,.0f}" if value is None or not value < 0 else f"at least -{most:,.0f}"
        require(value is None or -most <= value <= most, name, f"found {value}, wanted {bound}")
