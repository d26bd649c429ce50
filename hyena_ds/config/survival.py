"""`watchdog`, `supervisor` and `non_finite` in a run's config: what ends a run, and what has it go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hyena_ds.config.limits import MOST, MOST_RANKS, MOST_SECONDS, Bound, Bounded
from hyena_ds.config.loading import require


@dataclass(frozen=True)
class WatchdogConfig:
    """How long a rank may be silent or without progress before the run is ended."""

    enabled: bool = True
    """Watch at all; false turns every limit below off."""
    silence: float = 30.0
    """Seconds without a sign of life from a rank: its host is dead, its link is cut, or its process has stopped."""
    start: float = 900.0
    """Seconds from the start of a process to the first step; a checkpoint is read in this time."""
    step: float = 120.0
    """Seconds without progress in a step, at least; long steps get 3 times what the slowest one took, by their tokens."""
    validation: float = 1800.0
    """Seconds without progress in a validation."""
    save: float = 1800.0
    """Seconds without progress while a checkpoint is written."""

    def __post_init__(self) -> None:
        for name in ("silence", "start", "step", "validation", "save"):
            value = getattr(self, name)
            require(value <= MOST_SECONDS, name, f"found {value:g}, wanted at most {MOST_SECONDS:,.0f} seconds")
            require(value >= 1, name, f"found {value:g}, wanted at least 1 second, or watchdog.enabled: false")


@dataclass(frozen=True)
class SupervisorConfig(Bounded):
    """When `hyena-ds supervise` stops starting a run again, and on which hosts of a hostfile it starts it."""

    restarts_without_progress: Annotated[int, Bound(0, MOST)] = 5
    """Starts after failures that bring no newer checkpoint."""
    spare_hosts: Annotated[int, Bound(0, MOST_RANKS)] = 0
    """Hosts at the end of the hostfile that wait until one of the others is lost."""
    fewest_hosts: Annotated[int, Bound(1, MOST_RANKS)] = 1
    """Hosts that a run may go on with when others are lost and no spare is left; with fewer it is not started again. The
    global batch stays what it is."""


@dataclass(frozen=True)
class NonFiniteConfig(Bounded):
    """What is done about steps whose loss or gradient norm is NaN or infinite; their update never happens."""

    skips: Annotated[int, Bound(0, MOST)] = 3
    """Such steps in a row that are skipped; one more rolls the run back to its last checkpoint."""
    roll_backs: Annotated[int, Bound(0, MOST)] = 1
    """Times that a run is rolled back, and goes on past the bad steps; then it stops with exit code 3."""
