"""Which long convolution and which kernels all ranks take."""

from __future__ import annotations

from typing import NamedTuple

from hyena_ds.config.schema import RunConfig
from hyena_ds.model.kernel_choice import KernelChoice, choose_kernels
from hyena_ds.model.kernels import Kernels
from hyena_ds.ops.convolution_backend import FFT, Choice, Convolution, choose_convolution
from hyena_ds.parallel.agreement import agreed, from_every_rank
from hyena_ds.parallel.devices import Compute


class BackEnds(NamedTuple):
    """What every pass of a run computes with; by default the portable code."""

    convolution: Convolution = FFT
    kernels: Kernels | None = None
    said: tuple[str, ...] = ()
    """Lines for the journal: what was chosen, and why."""


def common_back_ends(config: RunConfig, compute: Compute) -> BackEnds:
    """The same on every rank. Collective; raises UserError on all where what is asked for cannot be had."""
    kernels = common_kernels(config, compute)
    convolution = common_convolution(config, compute, kernels.kernels)
    name = "portable" if kernels.kernels is None else kernels.kernels.name
    said = f"convolution: {convolution.convolution.name} ({convolution.why})", f"kernels: {name} ({kernels.why})"
    return BackEnds(convolution.convolution, kernels.kernels, said)


def common_convolution(config: RunConfig, compute: Compute, kernels: Kernels | None = None) -> Choice:
    """The long convolution's back end, the same on every rank: another than FFT only where all took it. Collective."""
    lengths = [stage.context_length for stage in config.schedule]
    with_skip = None if kernels is None else kernels.fft_with_skip
    own = agreed(lambda: choose_convolution(config.convolution, compute.device, lengths, with_skip))
    without = _first_without(own.why if own.convolution is FFT else None)
    if without is not None:
        return Choice(FFT, without)
    names = from_every_rank(own.convolution.name)
    return own if len({*names}) == 1 else Choice(FFT, f"ranks took {', '.join(sorted({*names}))}")


def common_kernels(config: RunConfig, compute: Compute) -> KernelChoice:
    """The kernels, the same on every rank: Triton's only where none is without them. Collective."""
    own = agreed(lambda: choose_kernels(config.kernels, config.model, config.precision, compute.device))
    without = _first_without(own.why if own.kernels is None else None)
    return own if without is None else KernelChoice(None, without)


def _first_without(why: str | None) -> str | None:
    """Why the lowest rank without it is without it; None where all have it. Collective."""
    for rank, without in enumerate(from_every_rank(why)):
        if without is not None:
            return f"rank {rank}: {without}" if rank else without
    return None
