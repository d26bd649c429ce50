"""`stragglers`, `corruption` and `profile` in a run's config: what of its ranks and steps a run looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hyena_ds.config.limits import MOST, MOST_SECONDS, MOST_STEPS, Bound, Bounded
from hyena_ds.config.loading import require

MOST_PROFILED = 1000
"""Steps of one trace: it holds every operator, and is kept in memory until it is written."""


@dataclass(frozen=True)
class StragglersConfig(Bounded):
    """Ranks that compute longer than the others, which wait for them in every step."""

    every_steps: Annotated[int | None, Bound(1, MOST_STEPS)] = 50
    """Steps of a window, in which every rank's compute and wait times are averaged and then compared; null compares none."""
    slower: Annotated[float, Bound(1, MOST)] = 1.5
    """A rank is slow that computes so many times as long as the median of the others, in two windows in a row."""
    seconds: Annotated[float, Bound(0, MOST_SECONDS)] = 30.0
    """On a CPU under Linux, a rank that is slow only while other programs have its core is named after so many seconds in a row,
    and at least two windows: mostly they leave it again."""
    ends_at: Annotated[float | None, Bound(1, MOST)] = None
    """A rank that is slow and so many times slower ends the run, which is saved, with exit code 75; by default it is only named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.slower > 1, "slower", f"found {self.slower:g}, wanted more than 1: as long as the others is not slow"
        )
        require(
            self.ends_at is None or self.ends_at >= self.slower,
            "ends_at",
            f"found {self.ends_at}, wanted at least slower, {self.slower:g}, or null",
        )


@dataclass(frozen=True)
class CorruptionConfig(Bounded):
    """Numbers that must be the same in two places and are not: a bit flipped, a device computes wrongly."""

    every_steps: Annotated[int | None, Bound(1, MOST_STEPS)] = 50
    """Steps between comparisons; there is always one after a checkpoint. Where they differ, the run is rolled back to a
    checkpoint from before, as often as `non_finite.roll_backs` allows. Null compares nothing."""


@dataclass(frozen=True)
class ProfileConfig(Bounded):
    """What torch's profiler records."""

    steps: tuple[int, ...]
    """First and last step of the trace, numbered from 1, as [100, 105]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        found = list(self.steps)
        ordered = len(found) == 2 and 1 <= found[0] <= found[1] <= MOST_STEPS
        require(ordered, "steps", f"found {found}, wanted the first and the last step, as [100, 105]")
        count = found[1] - found[0] + 1
        require(count <= MOST_PROFILED, "steps", f"found {count:,} steps, wanted at most {MOST_PROFILED:,}")
