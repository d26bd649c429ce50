"""Devices and links: what one rank can do a second, as published or as measured on this machine. Imports no torch.

Published numbers are what the makers' data sheets say (dense, without sparsity); what a program reaches of them is in
`Reached`, which is an assumption until a machine is measured (`hyena-ds plan --calibrate`, planning/calibration.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from hyena_ds.cost.shape import StepShape
from hyena_ds.errors import UserError

GIB = float(1 << 30)


TRANSFORM_COPIES = ((1 << 16, 2.9), (1 << 21, 4.9), (1 << 24, 6.5))
"""(points, copies of its data that a real transform takes), measured on an H200: bench/results/card/ceilings.json."""
PADDING_AND_PRODUCT = 1.0
"""Copies of its data around a transform. Forward, two signals are padded, 1.5 tensors of n floats each read and written, and
two spectra are read and a third one written, 3: six in three transforms, where a copy is two."""


def transform_copies(points: int) -> float:
    """How often a device could copy the data of a real transform while it transforms them.

    It goes through memory in passes of so many points each, so between sizes that were measured the next larger one counts. Beyond
    the largest, what was added between the last two is added for each of their factor: an assumption.
    """
    for measured, copies in TRANSFORM_COPIES:
        if points <= measured:
            return copies
    (before, fewer), (last, most) = TRANSFORM_COPIES[-2:]
    return most + (most - fewer) * math.log(points / last, last / before)


@dataclass(frozen=True)
class Links:
    """Between ranks; bytes a second that one rank sends, and the seconds that a message waits."""

    inside: float
    between: float
    latency_inside: float
    latency_between: float

    def latency(self, wide: bool) -> float:
        """Seconds until a message arrives that leaves the machine, or not."""
        return self.latency_between if wide else self.latency_inside


@dataclass(frozen=True)
class Rates:
    """What one rank reaches while all ranks of its machine work."""

    gemm_float32: float
    """Flops a second."""
    gemm_bfloat16: float
    pointwise: float
    """Bytes a second that kernels read and write tile by tile (cost/traffic.py)."""
    copy: float
    """Bytes a second of main or device memory, read and written."""
    links: Links
    filter: float | None = None
    """Flops a second of the implicit filter as a whole; None: its products at `gemm_float32`, the rest at `pointwise`."""
    transforms: tuple[tuple[int, float], ...] = ()
    """(points, flops a second of the long convolution at 2.5 n log2 n a transform); none: copies of its data that a transform takes."""
    kernel: float = 0.0
    """Seconds that the host needs to start a kernel."""
    step: float = 0.0
    """Seconds of an optimizer step besides everything that is counted."""
    asynchronous: bool = True
    """Whether the host starts kernels while others run, and exchanges go on beside transforms."""

    def transform_seconds(self, points: int, flops: float) -> float:
        """Seconds of `flops` in transforms of `points`, with the copies and products around them."""
        if points == 1:  # a context of one token: nothing to transform
            return 0.0
        if not self.transforms:
            count = flops / (2.5 * points * math.log2(points))
            return count * (transform_copies(points) + PADDING_AND_PRODUCT) * 8 * points / self.copy
        known = np.log(np.array(sorted(self.transforms)))
        return flops / math.exp(np.interp(math.log(points), known[:, 0], known[:, 1]))

    def slowed(self, times: float) -> Rates:
        """The same, on a core that is shared: everything but links takes `times` as long."""
        rates = ("gemm_float32", "gemm_bfloat16", "pointwise", "copy")
        return replace(
            self,
            **{name: getattr(self, name) / times for name in rates},
            filter=None if self.filter is None else self.filter / times,
            transforms=tuple((points, rate / times) for points, rate in self.transforms),
            kernel=self.kernel * times,
            step=self.step * times,
        )


@dataclass(frozen=True)
class Device:
    """What a rank has to itself."""

    name: str
    memory: float
    """Bytes."""
    rates: Rates
    process: float
    """Bytes that a rank holds before the first step: on a CPU program and libraries, on a GPU its context."""
    slack: float
    """Memory that the allocator holds above what is live, as a share of it; on a CPU of transforms alone."""
    on_cpu: bool = False
    source: str = ""


@dataclass(frozen=True)
class Reached:
    """Shares of published numbers that kernels of this kind reach: of an H200 measured (docs/results/card.md), of others assumed."""

    gemm: float = 0.43
    """Products with an inner dimension of a few hundred."""
    copy: float = 0.87
    """Share of memory by copies and transforms."""
    pointwise: float = 0.55
    """Share of memory by kernels that compute: fitted to nine steps."""
    link: float = 0.7
    """Assumed: there was one card."""


REACHED = Reached()
_KERNEL = 45e-6
"""Seconds to launch from Python, eagerly, with what torch does around a kernel: measured beside an H200 at 1,024 tokens."""
_STEP = 5e-3
_CONTEXT = 2.0 * GIB
"""CUDA context, NCCL's buffers and cuFFT's plans: an assumption."""
_LATENCY_INSIDE, _LATENCY_BETWEEN = 20e-6, 40e-6
"""Seconds of a small collective: an assumption."""


@dataclass(frozen=True)
class Published:
    """A line of a data sheet."""

    memory_gib: float
    bandwidth: float
    """Bytes a second."""
    float32: float
    """Flops a second without tensor cores: float32 products are not rounded to TF32 here."""
    bfloat16: float
    """Tensor cores, dense."""
    link: float
    """Bytes a second one way between GPUs of a host."""
    network: float
    """Bytes a second one way, a GPU's share of its host's adapters."""
    source: str
    assumes_network: bool = False
    """Whether no data sheet says how many adapters a host of these has."""


PUBLISHED = {
    "b200": Published(
        179, 8.0e12, 75e12, 2250e12, 900e9, 50e9, "HGX B200: NVLink 5 1.8 TB/s both ways, 400 Gb/s InfiniBand a GPU"
    ),
    "h200": Published(
        140, 4.8e12, 67e12, 989e12, 450e9, 50e9, "H200 SXM data sheet: NVLink 900 GB/s both ways, 400 Gb/s a GPU"
    ),
    "h100": Published(
        79.6, 3.35e12, 67e12, 989e12, 450e9, 50e9, "H100 SXM data sheet: NVLink 900 GB/s both ways, 400 Gb/s a GPU"
    ),
    "a100": Published(
        80,
        2.039e12,
        19.5e12,
        312e12,
        300e9,
        25e9,
        "A100 80 GB SXM data sheet: NVLink 600 GB/s both ways, 200 Gb/s a GPU",
    ),
    "a100-40gb": Published(
        39.6, 1.555e12, 19.5e12, 312e12, 300e9, 25e9, "A100 40 GB SXM data sheet: NVLink 600 GB/s both ways, 200 Gb/s"
    ),
    "l40s": Published(
        44.5,
        0.864e12,
        91.6e12,
        362e12,
        25e9,
        12.5e9,
        "L40S data sheet: PCIe 4.0 x16 only; 100 Gb/s a GPU assumed",
        True,
    ),
}
"""One direction of a link is half of what its data sheet says."""


def published_device(name: str) -> Device:
    """A GPU at the assumed shares of its published numbers. Raises UserError for one that is not in the table."""
    if name not in PUBLISHED:
        raise UserError(
            f"--device: found '{name}', wanted {', '.join(PUBLISHED)} or this; add others to cost/devices.py"
        )
    sheet = PUBLISHED[name]
    links = Links(
        sheet.link * REACHED.link, sheet.network * REACHED.link, _LATENCY_INSIDE, _LATENCY_INSIDE + _LATENCY_BETWEEN
    )
    rates = Rates(
        gemm_float32=sheet.float32 * REACHED.gemm,
        gemm_bfloat16=sheet.bfloat16 * REACHED.gemm,
        pointwise=sheet.bandwidth * REACHED.pointwise,
        copy=sheet.bandwidth * REACHED.copy,
        links=links,
        kernel=_KERNEL,
        step=_STEP,
    )
    return Device(name, sheet.memory_gib * GIB, rates, _CONTEXT, 0.1, source=sheet.source)


def device_called(name: str) -> Device | None:
    """The published GPU that a driver calls `name`, as in «NVIDIA A100-SXM4-40GB»; None for another one."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    known = [sheet for sheet in PUBLISHED if words.issuperset(sheet.split("-"))]
    return published_device(max(known, key=len)) if known else None


@dataclass(frozen=True)
class Cluster:
    """Machines of one kind, each with as many ranks."""

    nodes: int
    devices_per_node: int
    device: Device

    @property
    def ranks(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices_per_node

    def exchange_seconds(self, shape: StepShape, sent: float, messages: float) -> float:
        """All-to-alls of a sequence-parallel group, of which a rank sends `sent` bytes to others.

        Ranks of a group are neighbours: of its P - 1 others, at most M - 1 are in the same machine.
        """
        P, inside = shape.sequence_parallel, min(shape.sequence_parallel, self.devices_per_node)
        if P == 1:
            return 0.0
        away = sent * (P - inside) / (P - 1)
        links = self.device.rates.links
        return max((sent - away) / links.inside, away / links.between) + messages * links.latency(inside < P)

    def sum_seconds(self, size: float) -> float:
        """An all-reduce of `size` bytes over all ranks, as a ring."""
        if self.ranks == 1:
            return 0.0
        links, wide = self.device.rates.links, self.nodes > 1
        rate = links.between if wide else links.inside
        return 2 * size * (self.ranks - 1) / self.ranks / rate + links.latency(wide) * 2 * math.log2(self.ranks)
