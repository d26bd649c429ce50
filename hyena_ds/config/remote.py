"""Shards that are not in a directory of this machine: how a config names their place, and how fetching them behaves.

    DIRECTORY                            a directory of this machine, or one that every host sees
    http://HOST/PATH, https://HOST/PATH  PATH/index.json, PATH/train-000000.tar, ...
    s3://BUCKET/PATH                     the same of a bucket
    pipe:COMMAND                         what a shell command writes; {shard} in it stands for the file's name

User info, query and command may hold secrets: ${NAME} in an address or a command is a variable of the environment, looked
up when something is fetched and kept nowhere (redaction.py). Nothing is fetched here; data/remote/places.py does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

from hyena_ds.config.limits import ABOVE_0, MOST, MOST_SECONDS, Bound, Bounded
from hyena_ds.config.loading import require as _require
from hyena_ds.errors import UserError
from hyena_ds.redaction import REFERENCE, is_hidden, shown

NAME = "{shard}"
"""Stands for a file's name in a command."""
_AFAR = ("http://", "https://", "s3://", "pipe:")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_QUERIES = "!$&'()*+,/:;=?@[]%~-._"
"""Characters of a variable's value that a query takes as they are."""


def user_cache() -> Path:
    """The user's cache directory on this machine, the part of it that is ours."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hyena-ds"


def is_afar(place: str) -> bool:
    """Whether `place` is no directory but an address or a command."""
    return place.startswith(_AFAR)


def check_place(place: str, field: str) -> None:
    """Raise Invalid unless `place` may stand in a config."""
    found = f"found '{shown(place)}', wanted"
    known = is_afar(place) or not _SCHEME.match(place)
    _require(known, field, f"{found} a directory, http://, https://, s3:// or pipe:COMMAND")
    if place.startswith("pipe:"):
        _require(
            NAME in place or is_hidden(place) or bool(REFERENCE.search(place)),
            field,
            f"{found} {NAME} in the command, where the name of a file goes, for instance "
            f"aws s3 cp s3://bucket/genome/{NAME} -",
        )
    elif is_afar(place):
        _require(_has_host(place), field, f"{found} a host or a bucket after ://")


def _has_host(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return bool(parts.netloc) and ("$" in parts.netloc or parts.port != 0)
    except ValueError:
        return False


def variables_of(place: str) -> tuple[str, ...]:
    """Names of the variables of the environment that an address or a command needs; a directory needs none."""
    if not is_afar(place):
        return ()
    names = dict.fromkeys(REFERENCE.findall(place))
    if place.startswith("pipe:"):  # a variable that the command itself sets is the shell's
        names = {name: None for name in names if not re.search(rf"(?<![\w${{]){name}\b", place)}
    return tuple(names)


def expanded(place: str) -> str:
    """The place to fetch from: with the values of its variables. Raises UserError where one is not set.

    A command's variables are left to its shell, so that no value is read as shell; but a command that is nothing but
    variables is the text that they hold.
    """
    if is_afar(place) and is_hidden(place):
        raise UserError(
            f"data.sources: found '{place}', which a run keeps without its secrets; name the place of the shards again, "
            "for instance data.sources.0.shards=PLACE"
        )
    for name in variables_of(place):
        if name not in os.environ:
            raise UserError(
                f"data.sources: {shown(place)}: the environment variable {name} is not set; set it on every host"
            )
    if not is_afar(place):
        return place
    if place.startswith("pipe:"):
        only = not REFERENCE.sub("", place.removeprefix("pipe:")).replace(NAME, "").strip()
        return REFERENCE.sub(lambda match: os.environ[match[1]], place) if only else place
    head, at, tail = place.rpartition("@")
    tail, question, query = tail.partition("?")
    head = REFERENCE.sub(lambda match: quote(os.environ[match[1]], safe=""), head)
    tail = REFERENCE.sub(lambda match: os.environ[match[1]], tail)
    query = REFERENCE.sub(lambda match: quote(os.environ[match[1]], safe=_OF_QUERIES), query)
    return f"{head}{at}{tail}{question}{query}"


@dataclass(frozen=True)
class CacheConfig(Bounded):
    """Where a node keeps the shards that it fetched, and how long fetching one is tried. Directories need none of it."""

    directory: str | None = None
    """A directory of the node itself; ~ and $VARIABLES are replaced. By default hyena-ds/shards in the user's cache
    directory ($XDG_CACHE_HOME, else ~/.cache)."""
    gib: Annotated[float, Bound(ABOVE_0, MOST)] = 64.0
    """GiB of room for shards. The least recently used ones make room for new ones."""
    stall: Annotated[float, Bound(ABOVE_0, MOST_SECONDS)] = 20.0
    """Seconds without a byte after which a connection is given up and made anew, at the byte that is missing."""
    patience: Annotated[float, Bound(ABOVE_0, MOST_SECONDS)] = 90.0
    """Seconds without a byte, over all attempts and the growing pauses between them, after which a shard is given up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.directory != "", "directory", "found '', wanted a directory, or null for the user's own")

    @property
    def path(self) -> Path:
        """Directory of the cache: `directory` with variables and ~ expanded, or the user's own."""
        if self.directory is not None:
            return Path(os.path.expandvars(self.directory)).expanduser()
        return user_cache() / "shards"

    @property
    def bytes(self) -> int:
        """Bytes that the cache may hold."""
        return int(self.gib * 2**30)
