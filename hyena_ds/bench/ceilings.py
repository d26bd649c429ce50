"""What a rank of this machine reaches while all ranks work: what a step's time is compared with, and predicted from.

    GEMM        products, square and those of a tile: projections, MLP, and the gradients of their weights
    FFT         batched real transforms of the step's own length, 2.5 n log2 n flops each
    transforms  the long convolution of a group of channels, forward and backward with the output made again
    filter      the implicit filter's evaluation and gradient
    copy        of memory larger than the caches, bytes read and written
    exchange    all-to-alls of 8 MiB, whose values are checked, and of a few bytes

Each is the best of a few calls that all ranks begin together: what other work on the machine takes is no ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from hyena_ds.bench.measure import best_seconds
from hyena_ds.bench.processes import WrongValue
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.work import filter_flops
from hyena_ds.model.filter import FilterShape, ImplicitFilter, evaluate_filter, filter_gradients
from hyena_ds.ops.fft_convolution import causal_convolution, causal_convolution_backward, channels_at_once
from hyena_ds.ops.sizes import fft_length, tokens_of_a_tile
from hyena_ds.parallel.collectives import start_all_to_all
from hyena_ds.parallel.devices import Compute, is_accelerated

_GEMMS = ((1024, 1024, 1024), (16384, 128, 512), (16384, 512, 128))
_DEVICE_GEMMS = ((8192, 8192, 8192), (131072, 256, 1024), (131072, 1024, 256))
_FFT_BATCH = 16
_FFT_ELEMENTS = 1 << 26
_COPIED = 1 << 25
_EXCHANGED = 1 << 21
_FILTERED = 1 << 14
_TRANSFORMS = 9
"""Transforms of one channel: 3 forward, 6 backward with the output made again."""


class CeilingsRank:
    """One rank."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.on_cpu = not is_accelerated(compute)

    def limits(self, context_length: int) -> dict[str, float | None]:
        """Flops and bytes a second by part, the best that any program could reach. Collective."""
        shapes = _GEMMS if self.on_cpu else _DEVICE_GEMMS
        return {
            "gemm_float32": max(self._gemm(torch.float32, [shape]) for shape in shapes),
            "gemm_bfloat16": max(self._gemm(torch.bfloat16, [shape]) for shape in shapes),
            "fft": self._fft(fft_length(context_length)),
            "copy": self._copy(),
            "exchange": self._exchange() if self.compute.ranks > 1 else None,
        }

    def pieces(self, width: int, lengths: list[int]) -> dict[str, Any]:
        """Flops, bytes and seconds by name of the pieces of a step, run alone at the sizes the trainer uses. Collective."""
        D, n = width, tokens_of_a_tile(4 * width, self.on_cpu)
        tile = [(n, D, 3 * D), (n, D, D), (n, D, 4 * D), (n, 4 * D, D), (4 * D, n, D), (3 * D, n, D)]
        repeats = 20 if self.on_cpu else 5
        several = self.compute.ranks > 1
        return {
            "gemm_float32": self._gemm(torch.float32, tile * repeats),
            "gemm_bfloat16": self._gemm(torch.bfloat16, tile * repeats),
            "filter": self._filter(width),
            "copy": self._copy(),
            "kernel": self._kernel(),
            "transforms": [[fft_length(length), self._convolution(width, length)] for length in lengths],
            "exchange": self._exchange() if several else None,
            "latency": self._latency() if several else None,
        }

    def _seconds(self, work: Callable[[], Any], computes: bool = True, times: int = 1) -> float:
        """Seconds of one call of `work`, of which so many are timed together. Collective."""

        def several() -> None:
            for _ in range(times):
                work()

        return best_seconds(self.compute, several, computes) / times

    def _tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.compute.device)

    def _gemm(self, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]]) -> float:
        """Flops a second of products of (rows, inner, columns), one after the other."""
        products = {}
        for rows, inner, columns in shapes:
            a, b = self._tensor(rows, inner).to(dtype), self._tensor(inner, columns).to(dtype)
            products[rows, inner, columns] = (a, b, a.new_empty(rows, columns))

        def work() -> None:
            for shape in shapes:
                a, b, out = products[shape]
                torch.mm(a, b, out=out)

        return sum(2.0 * math.prod(shape) for shape in shapes) / self._seconds(work)

    def _fft(self, points: int) -> float:
        rows = max(1, min(_FFT_BATCH, _FFT_ELEMENTS // points))
        x = self._tensor(rows, points)
        spectrum = torch.fft.rfft(x)
        return rows * 2.5 * points * math.log2(points) / self._seconds(lambda: torch.fft.rfft(x, out=spectrum))

    def _convolution(self, width: int, length: int) -> float:
        d = width // self.compute.ranks
        g = channels_at_once(1, d, length, self.compute.device)
        u_BgL, dy_BgL, k_gL = self._tensor(1, g, length), self._tensor(1, g, length), self._tensor(g, length)
        points = fft_length(length)

        def work() -> None:
            causal_convolution(u_BgL, k_gL)
            causal_convolution_backward(dy_BgL, u_BgL, k_gL, True)

        seconds = self._seconds(work, times=max(1, (1 << 21) // (g * points)))
        return g * _TRANSFORMS * 2.5 * points * math.log2(points) / seconds

    def _filter(self, width: int) -> float:
        config = ModelConfig(width=width, layers=1, maximum_context=_FILTERED)
        shape = FilterShape(width, _FILTERED, _FILTERED, config.filter_features, 0.0)
        implicit_filter = ImplicitFilter(shape, config.filter_width, config.filter_frequency).to(self.compute.device)
        weights = type(implicit_filter.weights())(*(weight.detach() for weight in implicit_filter.weights()))
        dk_Dl = self._tensor(width, _FILTERED)

        def work() -> None:
            evaluate_filter(shape, weights, 0, _FILTERED)
            filter_gradients(shape, weights, 0, dk_Dl)

        flops = filter_flops(StepShape(config, _FILTERED)).total  # of one evaluation: "balanced" keeps the filter
        return flops / self._seconds(work)

    def _copy(self) -> float:
        source = torch.ones(_COPIED, device=self.compute.device)
        target = torch.empty_like(source)
        return 2.0 * source.nbytes / self._seconds(lambda: target.copy_(source))

    def _kernel(self) -> float:
        """Seconds to start a kernel with next to no work."""
        return self._seconds(partial(self._tensor(4).add_, 1.0), times=2000)

    def _exchange(self) -> float:
        P, rank = self.compute.ranks, self.compute.rank
        number_P1 = torch.arange(P, device=self.compute.device).float().unsqueeze(1)
        pieces = (number_P1 + 100 * rank).repeat(1, _EXCHANGED // P)
        if not bool((self._through(pieces) == 100 * number_P1 + rank).all()):
            raise WrongValue(f"all-to-all between {P} ranks: rank {rank} received other values than were sent to it")
        return pieces.nbytes * (P - 1) / P / self._seconds(lambda: self._through(pieces), False)

    def _latency(self) -> float:
        return self._seconds(partial(self._through, self._tensor(self.compute.ranks, 16)), False, times=20)

    def _through(self, pieces: torch.Tensor) -> torch.Tensor:
        assert dist.group.WORLD is not None
        return start_all_to_all(pieces, dist.group.WORLD).wait()
