"""The largest numbers of a config: far above what anybody trains, and small enough to compute with.

Beyond them no machine could follow; and what a typing error makes of a number is refused before anything loops over it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints

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


ABOVE_0 = math.ulp(0.0)
"""The least positive number."""
_LEAST_IN_WORDS = {0: "0 or more", ABOVE_0: "a positive number"}


class Bound(NamedTuple):
    """The numbers that a field of a config may hold, written into its type: `Annotated[int, Bound(1, MOST_STEPS)]`."""

    least: float
    most: float


class Bounded:
    """Base of a dataclass whose types have bounds."""

    def __post_init__(self) -> None:
        """Raise Invalid for the first field that is there and beyond its bound, or not a number."""
        kind: type = type(self)
        for name, bound in _bounds_of(kind).items():
            value, key = getattr(self, name), name.removesuffix("_")
            if value is not None:
                require(value <= bound.most, key, f"found {value}, wanted at most {bound.most:,.0f}")
                least = _LEAST_IN_WORDS.get(bound.least, f"at least {bound.least:,.0f}")
                require(value >= bound.least, key, f"found {value}, wanted {least}")


@cache
def _bounds_of(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}
