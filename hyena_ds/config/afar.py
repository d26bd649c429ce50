"""Shards that are not in a directory of this machine: how a config names their place, and how fetching them behaves.

    DIRECTORY                            a directory of this machine, or one that every host sees
    http://HOST/PATH, https://HOST/PATH  PATH/index.json, PATH/train-000000.tar, ...
    s3://BUCKET/PATH                     the same of a bucket
    pipe:COMMAND                         what a shell command writes; {shard} in it stands for the file's name

Nothing is fetched here; data/places.py does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hyena_ds.config.limits import MOST, MOST_SECONDS, require_within
from hyena_ds.config.loading import require as _require

NAME = "{shard}"
"""Stands for a file's name in a command."""
_AFAR = ("http://", "https://", "s3://", "pipe:")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_afar(place: str) -> bool:
    """Whether `place` is no directory but an address or a command."""
    return place.startswith(_AFAR)


def check_place(place: str, field: str) -> None:
    """Raise Invalid unless `place` may stand in a config."""
    known = is_afar(place) or not _SCHEME.match(place)
    _require(known, field, f"found '{place}', wanted a directory, http://, https://, s3:// or pipe:COMMAND")
    if place.startswith("pipe:"):
        _require(
            NAME in place,
            field,
            f"found '{place}', wanted {NAME} in the command, where the name of a file goes, for instance "
            f"'pipe:aws s3 cp s3://bucket/genome/{NAME} -'",
        )
    elif is_afar(place):
        _require(_has_host(place), field, f"found '{place}', wanted a host or a bucket after ://")


def _has_host(address: str) -> bool:
    try:
        return bool(urlsplit(address).netloc)
    except ValueError:
        return False


@dataclass(frozen=True)
class CacheConfig:
    """Where a node keeps the shards that it fetched, and how long fetching one is tried. Directories need none of it."""

    directory: str | None = None
    """A directory of the node itself; ~ and $VARIABLES are replaced. By default hyena-ds/shards in the user's cache
    directory ($XDG_CACHE_HOME, else ~/.cache)."""
    gib: float = 64.0
    """Room for shards. The ones that were used least recently make place for new ones."""
    stall: float = 20.0
    """Seconds without a byte after which a connection is given up and made anew, at the byte that is missing."""
    patience: float = 90.0
    """Seconds without a byte, over all attempts and the growing pauses between them, after which a shard is given up."""

    def __post_init__(self) -> None:
        require_within(self, {"gib": MOST, "stall": MOST_SECONDS, "patience": MOST_SECONDS})
        for name in ("gib", "stall", "patience"):
            _require(getattr(self, name) > 0, name, f"found {getattr(self, name)}, wanted a positive number")
        _require(self.directory != "", "directory", "found '', wanted a directory, or null for the user's own")

    @property
    def path(self) -> Path:
        if self.directory is not None:
            return Path(os.path.expandvars(self.directory)).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hyena-ds" / "shards"

    @property
    def bytes(self) -> int:
        return int(self.gib * 2**30)
