"""What all ranks look at together before a run begins: its shards."""

from __future__ import annotations

import hashlib
import os
import socket

from hyena_ds.config.remote import is_afar
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.checksums import verify_shards
from hyena_ds.data.identity import ShardList
from hyena_ds.data.remote.places import check_room, read_indices
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.shards import INDEX_NAME, Shard, ShardIndex
from hyena_ds.data.stream import Sources
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import agreed, from_every_rank
from hyena_ds.parallel.devices import Compute
from hyena_ds.redaction import shown


def check_shards(config: RunConfig, compute: Compute) -> ShardList:
    """Every split and window that the run needs is there, in the same shards for all: their list. Collective.

    The ranks of a node share the checksums of its shards, which are remembered (data/checksums.py). Where shards are fetched,
    a node's first rank fetches the index; they themselves are checked when they arrive, and now those that the node's cache
    has of earlier runs.
    """
    if config.data.is_afar:
        agreed(lambda: read_indices(config.data) if compute.local_rank == 0 else [])
    indices = agreed(lambda: read_indices(config.data, kept=True))
    _check_same_everywhere(config, indices)
    agreed(lambda: _check_own_share(config, compute, indices))
    return ShardList.of(indices)


def _check_same_everywhere(config: RunConfig, indices: list[ShardIndex]) -> None:
    """Raise UserError on all ranks unless all have read the same index of every source. Collective."""
    digests = [hashlib.sha256(index.to_json().encode()).hexdigest() for index in indices]
    everywhere = from_every_rank((socket.gethostname(), digests))
    for rank, (host, theirs) in enumerate(everywhere):
        for number, source in enumerate(config.data.sources):
            if theirs[number] != everywhere[0][1][number]:
                raise UserError(
                    f"data.sources.{number}: {shown(source.shards)}: rank {rank} on {host} has another {INDEX_NAME} than rank 0 "
                    f"on {everywhere[0][0]}; copy the same shards to every host, or name a place that all of them see"
                )


def _check_own_share(config: RunConfig, compute: Compute, indices: list[ShardIndex]) -> None:
    check_room(config.data, indices)
    for split in ("train", "valid"):
        sources = Sources(config.data, split, indices)
        for stage in config.schedule:
            sources.windows(stage.context_length)
    if not config.data.verify:
        return
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    share = compute.local_rank % ranks_here
    fetched: list[Shard] = []
    for source, index in zip(config.data.sources, indices, strict=True):
        if is_afar(source.shards):
            fetched += index.shards
        else:
            verify_shards(source.shards, index.shards[share::ranks_here], share)
    if fetched:
        ShardCache(config.data.cache).remove_damaged(fetched[share::ranks_here], share)
