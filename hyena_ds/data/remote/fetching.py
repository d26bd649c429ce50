"""Fetches one file until it is whole and right, or patience ends; says which one failed, and why.

    address --attempts, pauses that grow--> FILE.part --size and SHA-256 agree--> whole
                 |                              |
             refused, or no byte for       else from the start again,
             `patience` seconds: LocalError    WRONG_BYTES times in all

Attempts that bring bytes may go on for ever; the watchdog's bound on a step is another one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

from hyena_ds.config.remote import CacheConfig
from hyena_ds.data.remote.transfer import Address, Broken, Refused, append, opener
from hyena_ds.data.shards import INDEX_NAME, Shard, sha256_of
from hyena_ds.errors import LocalError

FIRST_PAUSE = 0.25
"""Seconds; doubles with every attempt that brings nothing."""
LONGEST_PAUSE = 30.0
WRONG_BYTES = 3
"""Times that a whole file of wrong bytes is fetched before it is given up."""


def fetch_shard(address: Address, part: Path, shard: Shard, cache: CacheConfig, stopped: Event) -> None:
    """Bring `part` to the whole shard, checked against the index.

    Raises LocalError; OSError when `part` cannot be written; and Stopped once `stopped` is set.
    """
    for tried in range(1, WRONG_BYTES + 1):
        fetch_whole(address, part, shard.bytes, cache, stopped)
        size = part.stat().st_size
        if size == shard.bytes and sha256_of(part) == shard.sha256:
            return
        found = f"{size:,} bytes, wanted {shard.bytes:,}" if size != shard.bytes else "bytes with another SHA-256"
        # It may be the rest of an older fetch: from its first byte on it is the source's alone.
        os.truncate(part, 0)
        if tried < WRONG_BYTES:
            _pause(FIRST_PAUSE * 2 ** (tried - 1), stopped)
    raise LocalError(
        f"{address}: found {found} than {INDEX_NAME} says, {WRONG_BYTES} times; the shard is damaged there, or "
        "not of this index: copy or prepare it again, then start the same line again: the run continues"
    )


def fetch_whole(
    address: Address,
    part: Path,
    limit: int,
    cache: CacheConfig,
    stopped: Event,
    what: str = "shard",
) -> None:
    """Bring `part` to the end of what the source has; LocalError where that is more than `limit` bytes."""
    stall = min(cache.stall, cache.patience)
    open_ = opener(address, stall)
    heard, most, pause = time.monotonic(), 0, FIRST_PAUSE

    def arrived(have: int, whole: int | None) -> None:
        nonlocal heard, most
        if have > most:  # the same bytes again, of a source that cannot go on in the middle, are no progress
            heard, most = time.monotonic(), have
        _pause(0, stopped)

    while True:
        try:
            problem = append(open_, part, limit, arrived)
            if not problem:
                return
            pause = FIRST_PAUSE
        except Refused as error:
            problem = address.without_secrets(str(error))
            raise LocalError(
                f"{address}: the {what} cannot be fetched: {problem}; make it available there, or correct data.sources, "
                "then start the same line again"
            ) from None
        except Broken as error:
            problem = str(error)
        silent = time.monotonic() - heard
        if silent + pause + stall > cache.patience:  # another attempt may be silent for so long
            raise LocalError(
                f"{address}: the {what} cannot be fetched: no byte came for {silent:.1f} s of attempts "
                f"({address.without_secrets(problem)}); see to the source or the network, or raise data.cache.patience "
                "(and watchdog.step), then start the same line again: the run continues"
            )
        _pause(pause, stopped)
        pause = min(2 * pause, LONGEST_PAUSE)


class Stopped(Exception):
    """Nobody needs the file any more."""


def _pause(seconds: float, stopped: Event) -> None:
    if stopped.wait(seconds):
        raise Stopped
