"""Predicted seconds of an optimizer step on one rank, by part.

    counts of hyena_ds.cost.work and of cost/traffic.py --rates of the device--> seconds

GEMM        projections and MLP
pointwise   gates, norms, short filter, GELU, dropout, embedding, head and loss
FFT         the long convolution's transforms, with padding and products
filter      the implicit filter, evaluated and its gradient
exchange    all-to-alls of the sequence-parallel group, what of them the transforms do not hide
optimizer   sum of the gradients over all ranks, AdamW, and what a step costs however little it computes
waiting     where the host starts kernels more slowly than the device runs them
"""

from __future__ import annotations

from dataclasses import dataclass

from hyena_ds.cost.devices import Cluster
from hyena_ds.cost.shape import StepShape, parameters
from hyena_ds.cost.traffic import overlap_groups, traffic
from hyena_ds.cost.work import exchange_bytes, fft_flops, filter_flops, gemm_flops, head_flops
from hyena_ds.ops.sizes import fft_length

PARTS = ("FFT", "GEMM", "pointwise", "filter", "exchange", "optimizer", "waiting")
_ADAMW_TOUCHES = 20
"""Floats that AdamW, clipping and ZeRO's copies read and write for a parameter."""
STEP_MESSAGES = 8
"""Small collectives of a step: ZeRO's, the gradient norm's, the loss's and the votes'."""


@dataclass(frozen=True)
class StepTime:
    """Seconds by part, and the bytes that a rank sends in exchanges."""

    parts: dict[str, float]
    exchanged: float

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.parts.values())


def step_time(shape: StepShape, cluster: Cluster) -> StepTime:
    """Seconds of every part. Parts follow each other, but for exchanges that run beside transforms."""
    device = cluster.device
    rates = device.rates
    points = fft_length(shape.context_length, cluster.device.on_cpu)
    moved = traffic(shape, device.on_cpu)
    gemm = rates.gemm_bfloat16 if shape.precision == "bfloat16" else rates.gemm_float32
    parts = dict.fromkeys(PARTS, 0.0)
    parts["GEMM"] = gemm_flops(shape).total / gemm + head_flops(shape) / rates.gemm_float32
    parts["pointwise"] = moved.layer_bytes / rates.pointwise
    parts["FFT"] = rates.transform_seconds(points, fft_flops(shape, points).total)
    filter_work = filter_flops(shape).total
    if rates.filter is not None:
        parts["filter"] = filter_work / rates.filter
    else:
        parts["filter"] = filter_work / rates.gemm_float32 + moved.filter_bytes / rates.pointwise
    sent = float(sum(exchange_bytes(shape)))
    exchange = cluster.exchange_seconds(shape, sent, moved.messages)
    if rates.asynchronous:
        groups = overlap_groups(shape, device.on_cpu)
        exchange = exchange / groups + max(0.0, exchange * (1 - 1 / groups) - parts["FFT"])
    parts["exchange"] = exchange + moved.packed_bytes / rates.copy
    parts["optimizer"] = _optimizer(shape, cluster) + rates.step
    if rates.asynchronous:
        parts["waiting"] = max(0.0, moved.kernels * rates.kernel - sum(parts.values()))
    else:
        parts["pointwise"] += moved.kernels * rates.kernel
    return StepTime(parts, sent)


def optimizer_bytes(shape: StepShape) -> float:
    """Read and written by this rank's update."""
    count = parameters(shape.config)
    return 4.0 * _ADAMW_TOUCHES * (count / shape.ranks if shape.zero_stage else count)


def _optimizer(shape: StepShape, cluster: Cluster) -> float:
    """ZeRO shards the update over all ranks; the sum over them moves every gradient, and every new weight back."""
    count = parameters(shape.config)
    small = STEP_MESSAGES * cluster.device.rates.links.latency(cluster.nodes > 1) if shape.ranks > 1 else 0.0
    return optimizer_bytes(shape) / cluster.device.rates.pointwise + cluster.sum_seconds(4.0 * count) + small
