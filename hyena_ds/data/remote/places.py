"""Where a source's shards are: in a directory, or afar and in the node's cache.

    DIRECTORY ------------------------------> index, ShardReader
    URL or command --index.json, fetched----> index, ShardCache.read_into

Whoever reads tokens does not know which.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from threading import Event

from hyena_ds.config.remote import CacheConfig, expanded, is_afar
from hyena_ds.config.schema import DataConfig
from hyena_ds.data.remote.fetching import fetch_whole
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.remote.transfer import address_of, named
from hyena_ds.data.shards import INDEX_NAME, Reader, Shard, ShardIndex, ShardReader, parse_index, read_index
from hyena_ds.errors import LocalError, UserError
from hyena_ds.files.whole import aside

MOST_INDEX_BYTES = 2**26
"""The most bytes that an index from afar may have; one of 100,000 chunks has less than half of it."""


def read_indices(config: DataConfig, kept: bool = False) -> list[ShardIndex]:
    """The index of every source. One from afar is fetched, and stays what it is for the rest of the process.

    With `kept` it is not fetched where this node's cache holds one: another process has just brought it.
    """
    return [
        _index_from_afar(source.shards, config.cache, kept) if is_afar(source.shards) else read_index(source.shards)
        for source in config.sources
    ]


def reader(place: str, cache: CacheConfig, shard: Shard) -> Reader:
    """What reads one shard."""
    return partial(ShardCache(cache).read_into, place, shard) if is_afar(place) else ShardReader(place, shard).read_into


def check_room(config: DataConfig, indices: list[ShardIndex]) -> None:
    """Raise UserError unless the cache has room for what is read from at one time."""
    needed = 0
    for source, index in zip(config.sources, indices, strict=True):
        if is_afar(source.shards):
            train = sorted((shard.bytes for shard in index.shards if shard.split == "train"), reverse=True)
            group = sum(train[: config.shuffle_shards])  # the most, in whatever order an epoch has them
            needed += max([group, *(shard.bytes for shard in index.shards)])
    if needed > config.cache.bytes:
        raise UserError(
            f"data.cache.gib: found {config.cache.gib:g}, wanted at least {needed / 2**30:.3g}: windows are shuffled "
            f"within {config.shuffle_shards} shards (data.shuffle_shards) of each source, and all of them are read at "
            "one time; raise it, or shuffle fewer shards"
        )


_known: dict[tuple[str, CacheConfig], ShardIndex] = {}
"""What this process has read: an index that changes at its source must not change a run."""


def _index_from_afar(place: str, cache: CacheConfig, kept: bool) -> ShardIndex:
    if (place, cache) not in _known:
        path = cache.path / f"index-{hashlib.sha256(expanded(place).encode()).hexdigest()[:16]}.json"
        if not (kept and path.is_file()):
            _fetch_index(place, path, cache)
        try:
            _known[place, cache] = parse_index(path.read_bytes(), named(place, INDEX_NAME))
        except OSError as error:
            raise LocalError(f"{path}: the index that was fetched became unreadable ({error.strerror})") from None
    return _known[place, cache]


def _fetch_index(place: str, path: Path, cache: CacheConfig) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside(path, own=True) as part:
            fetch_whole(address_of(place, INDEX_NAME), part, MOST_INDEX_BYTES, cache, Event(), what="index")
    except OSError as error:
        raise LocalError(
            f"{error.filename or path}: cannot keep {named(place, INDEX_NAME)} ({error.strerror}); make "
            "room, or name another data.cache.directory"
        ) from None
