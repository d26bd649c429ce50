"""`checkpoint` in a run's config: when its state is written, on which disks, and where copies of it go."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hyena_ds.config.limits import ABOVE_0, MOST_SECONDS, MOST_STEPS, Bound, Bounded
from hyena_ds.config.loading import require as _require
from hyena_ds.redaction import shown

MOST_TIERS = 8
_BUCKET = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]+(/[^\s?#@]*)?")


def _check_keep_every(value: int | None) -> None:
    _require(value is None or value > 0, "keep_every", f"found {value}, wanted at least 1, or null")


@dataclass(frozen=True)
class TierConfig(Bounded):
    """A further place for checkpoints, beyond the run's directory: copies go there while training goes on; or, where it is
    local, each host's part of a checkpoint is saved there."""

    place: str
    """A directory (~ and $VARIABLES are replaced), or s3://BUCKET/PATH; a run's checkpoints go into a directory of its name
    there. Credentials, region and endpoint are those that AWS tools find."""
    every_steps: Annotated[int, Bound(1, MOST_STEPS)] = 500
    """Steps between copies: the first checkpoint at or after each multiple goes there; so does the last one of a run, and
    of a stop."""
    keep_last: Annotated[int, Bound(1, MOST_STEPS)] = 3
    """Newest copies that are kept."""
    keep_every: Annotated[int | None, Bound(-MOST_STEPS, MOST_STEPS)] = None
    """Copies at multiples of this many steps are kept forever; by default none."""
    patience: Annotated[float, Bound(ABOVE_0, MOST_SECONDS)] = 300.0
    """Seconds without a file that arrives, over all attempts and the growing pauses between them, after which a copy is
    given up, and the next one is tried when it is due."""
    required: bool = False
    """End the run at its next checkpoint when a copy was given up, or a host's part could not be written; otherwise the log
    says so, and training goes on."""
    local: bool = False
    """The directory is on a disk of each host's own. Every host saves its part of the checkpoint there every `every_steps`
    steps, at those that do not save to the run's directory; `patience` does not matter. At most one tier is local."""

    def __post_init__(self) -> None:
        super().__post_init__()
        found = f"found '{shown(self.place)}', wanted"
        afar = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", self.place)
        _require(self.place != "", "place", f"{found} a directory or s3://BUCKET/PATH")
        _require(not afar or bool(_BUCKET.fullmatch(self.place)), "place", f"{found} a directory or s3://BUCKET/PATH")
        _require(not (afar and self.local), "local", f"found true for '{shown(self.place)}', wanted a directory")
        _check_keep_every(self.keep_every)

    @property
    def directory(self) -> Path | None:
        """The place where it is a directory, with variables and ~ expanded; None where it is a bucket."""
        return None if self.place.startswith("s3://") else Path(os.path.expandvars(self.place)).expanduser()


@dataclass(frozen=True)
class CheckpointConfig(Bounded):
    """When the run's state is written."""

    every_steps: Annotated[int, Bound(1, MOST_STEPS)] = 100
    """Steps between checkpoints; there is always one at the end of a stage."""
    keep_last: Annotated[int, Bound(1, MOST_STEPS)] = 3
    """Newest checkpoints that are kept."""
    keep_every: Annotated[int | None, Bound(-MOST_STEPS, MOST_STEPS)] = None
    """Checkpoints at multiples of this many steps are kept forever; by default none."""
    background: bool = True
    """Write while training goes on, from a copy of the state in main memory; otherwise training waits."""
    tiers: tuple[TierConfig, ...] = ()
    """Further places, each with its own interval and its own count: a run goes on from the newest complete checkpoint of any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_keep_every(self.keep_every)
        found = len(self.tiers)
        _require(found <= MOST_TIERS, "tiers", f"found {found:,} places, wanted at most {MOST_TIERS}")
        local, found = self.local, sum(tier.local for tier in self.tiers)
        _require(found <= 1, "tiers", f"found {found} that are local, wanted at most one")
        if local is not None:
            _require(
                local.every_steps < self.every_steps,
                "tiers",
                f"the local tier has every_steps {local.every_steps}, wanted fewer than checkpoint.every_steps "
                f"{self.every_steps}: what is saved to the run's directory is not saved to local disks too",
            )
        least = self.every_steps if local is None else local.every_steps
        key = "checkpoint." if local is None else "the local tier's "
        for number, tier in enumerate(self.tiers):
            _require(
                tier.every_steps >= least,
                "tiers",
                f"tier {number} has every_steps {tier.every_steps}, wanted at least {key}every_steps {least}: only what was "
                "saved can be copied",
            )
            twice = tier.place in (other.place for other in self.tiers[:number])
            _require(not twice, "tiers", f"found '{shown(tier.place)}' twice, wanted every place once")

    @property
    def local(self) -> TierConfig | None:
        """The tier on disks of the hosts' own."""
        return next((tier for tier in self.tiers if tier.local), None)

    @property
    def copies(self) -> tuple[TierConfig, ...]:
        """The tiers that copies go to."""
        return tuple(tier for tier in self.tiers if not tier.local)
