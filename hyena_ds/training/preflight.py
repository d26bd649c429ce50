"""What all ranks look at together before a run begins: the shards, and the long convolution's back end."""

from __future__ import annotations

from hyena_ds.config.schema import RunConfig
from hyena_ds.data.shards import read_index, verify_shard
from hyena_ds.data.stream import Sources
from hyena_ds.ops.convolution_backend import FFT, Choice, choose_convolution
from hyena_ds.parallel.agreement import agreed, from_every_rank
from hyena_ds.parallel.devices import Compute


def common_convolution(config: RunConfig, compute: Compute) -> Choice:
    """The long convolution's back end, the same on every rank: cuDNN's only where none is without it. Collective."""
    lengths = [stage.context_length for stage in config.schedule]
    own = agreed(lambda: choose_convolution(config.convolution, compute.device, lengths))
    for rank, without in enumerate(from_every_rank(own.why if own.convolution is FFT else None)):
        if without is not None:
            return Choice(FFT, f"rank {rank}: {without}" if rank else without)
    return own


def check_shards(config: RunConfig, compute: Compute) -> None:
    """Every split and window that the run needs is there; every rank checks its share of the checksums."""
    indices = [read_index(source.shards) for source in config.data.sources]
    for split in ("train", "valid"):
        sources = Sources(config.data, split, indices)
        for stage in config.schedule:
            sources.windows(stage.context_length)
    if config.data.verify:
        shards = [
            (source.shards, shard)
            for source, index in zip(config.data.sources, indices, strict=True)
            for shard in index.shards
        ]
        for path, shard in shards[compute.rank :: compute.ranks]:
            verify_shard(path, shard)
