"""What all ranks look at together before a run begins: its shards."""

from __future__ import annotations

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
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.redaction import shown


def check_shards(config: RunConfig, compute: Compute) -> tuple[list[ShardIndex], ShardList]:
    """Every split and window that the run needs is there, in the same shards for all: their indices, and on rank 0 their list.

    Collective. The first rank of a node reads and, where shards are fetched, fetches its indices, and sees that every shard is
    there; the others are sent those of rank 0. The ranks of a node share the checksums of its shards, which are remembered
    (data/checksums.py); shards that are fetched are checked when they arrive, and now those that the node's cache has of earlier runs.
    """
    if config.data.is_afar:  # once a machine, also where nobody knows which ranks share it
        agreed(lambda: read_indices(config.data) if compute.local_rank == 0 else [])
    own = agreed(lambda: read_indices(config.data, kept=True) if compute.leads else [])
    _check_same_everywhere(config, own)
    indices = from_rank_zero(lambda: own)
    from_rank_zero(lambda: _check_windows(config, indices))
    agreed(lambda: _check_own_share(config, compute, indices))
    return indices, ShardList.of(indices) if compute.rank == 0 else ShardList(())


def _check_same_everywhere(config: RunConfig, own: list[ShardIndex]) -> None:
    """Raise UserError on all ranks unless all that have read the index of every source have read the same. Collective."""
    everywhere = from_every_rank((socket.gethostname(), [index.fingerprint for index in own]))
    for rank, (host, theirs) in enumerate(everywhere):
        for number, digest in enumerate(theirs):
            if digest != everywhere[0][1][number]:
                source = config.data.sources[number]
                raise UserError(
                    f"data.sources.{number}: {shown(source.shards)}: rank {rank} on {host} has another {INDEX_NAME} than rank 0 "
                    f"on {everywhere[0][0]}; copy the same shards to every host, or name a place that all of them see"
                )


def _check_windows(config: RunConfig, indices: list[ShardIndex]) -> None:
    """Raise UserError unless there are windows of every stage, and the cache has room."""
    check_room(config.data, indices)
    for split in ("train", "valid"):
        sources = Sources(config.data, split, indices)
        for stage in config.schedule:
            sources.windows(stage.context_length)


def _check_own_share(config: RunConfig, compute: Compute, indices: list[ShardIndex]) -> None:
    if not config.data.verify:
        return
    share, ranks_here = compute.node.index(compute.rank), len(compute.node)
    fetched: list[Shard] = []
    for source, index in zip(config.data.sources, indices, strict=True):
        if is_afar(source.shards):
            fetched += index.shards
        else:
            verify_shards(source.shards, index.shards[share::ranks_here], share)
    if fetched:
        ShardCache(config.data.cache).remove_damaged(fetched[share::ranks_here], share)
