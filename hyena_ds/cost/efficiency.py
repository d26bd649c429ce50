"""How much of a machine a step uses: model flops utilisation, and the share of the machine's measured limit. No torch.

    model flops   what a step must compute, recomputation left out: products of projections, MLP, filter and head, and the
                  long convolution's transforms at 2.5 n log2 n (cost/work.py), on one rank
    mfu           model flops / (seconds x peak flops a second of the device in the run's precision)
    limit_share   seconds of the same work at the measured rates of its products and transforms / seconds

The peak is the data sheet's (cost/devices.py), of other machines the measured rate of their products. Measured rates are those
of `hyena-ds plan --calibrate`, of as many ranks on this machine.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_ds.cost.devices import PUBLISHED, Links, Rates
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.work import fft_flops, filter_flops, gemm_flops, head_flops
from hyena_ds.files.rows import read_json
from hyena_ds.ops.sizes import fft_length


@dataclass(frozen=True)
class Work:
    """Flops of a step on one rank, without what is computed again."""

    products: float
    """In the run's precision."""
    products_float32: float
    """In float32 always: the filter and the head."""
    transforms: float
    points: int
    """Points of a transform."""

    @property
    def flops(self) -> float:
        """All of them."""
        return self.products + self.products_float32 + self.transforms


@dataclass(frozen=True)
class Limits:
    """What one rank of a machine can do; None where that is not known."""

    peak: float | None = None
    """Flops a second, as its maker says."""
    rates: Rates | None = None
    """As measured while all ranks of the machine worked."""


def work_of(shape: StepShape, on_cpu: bool) -> Work:
    """The least work of a step."""
    points = fft_length(shape.context_length, on_cpu)
    in_float32 = filter_flops(shape).minimum + head_flops(shape)
    return Work(gemm_flops(shape).minimum, in_float32, fft_flops(shape, points).minimum, points)


def efficiency(shape: StepShape, seconds: float, limits: Limits, on_cpu: bool) -> dict[str, float | None]:
    """The columns `mfu` and `limit_share` of a step that took `seconds`; None for what is not known."""
    work, rates = work_of(shape, on_cpu), limits.rates
    product = None if rates is None else (rates.gemm_bfloat16 if shape.precision == "bfloat16" else rates.gemm_float32)
    peak = limits.peak or product
    least = None
    if rates is not None and product:
        least = work.products / product + work.products_float32 / rates.gemm_float32
        least += rates.transform_seconds(work.points, work.transforms)
    return {
        "mfu": None if not peak else work.flops / seconds / peak,
        "limit_share": None if least is None else least / seconds,
    }


def published_peak(device: str, precision: str) -> float | None:
    """Flops a second that a data sheet says of a device with this name; None for one without, or for a part of one."""
    words = device.lower().replace("-", " ").split()
    if "mig" in words:
        return None
    name = next((name for name in PUBLISHED if name in words), None)  # a100-40gb has the same flops as a100
    return None if name is None else getattr(PUBLISHED[name], precision)


def calibration_file() -> Path:
    """Where `hyena-ds plan --calibrate` leaves what it measured: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "hyena-ds" / "calibration.json"


def measured_rates(file: Path, ranks: int, on_cpu: bool) -> Rates | None:
    """The rates of one of `ranks` ranks of this machine; None where they were not measured, or on another kind of device."""
    try:
        found = read_json(file)
        if ("accelerator" in found["machine"]) is on_cpu:
            return None
        ceiling = found["ceilings"][str(ranks)]
        transforms = tuple((int(points), _rate(rate)) for points, rate in ceiling["transforms"])
        float32, bfloat16, copy = (_rate(ceiling[name]) for name in ("gemm_float32", "gemm_bfloat16", "copy"))
        return Rates(float32, bfloat16, math.inf, copy, Links(math.inf, math.inf, 0.0, 0.0), transforms=transforms)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _rate(found: Any) -> float:
    rate = float(found)
    if not 0 < rate < math.inf:
        raise ValueError(found)
    return rate
