"""Which long convolution all ranks take."""

from __future__ import annotations

from hyena_ds.config.schema import RunConfig
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
