"""What a rank of this machine reaches while all ranks work: the pieces of a step, run alone, at the sizes the trainer uses.

    GEMM        the products of a tile: projections, MLP, and the gradients of their weights
    FFT         the long convolution of a group of channels, forward and backward with the output made again
    filter      the implicit filter's evaluation and gradient
    copy        of memory larger than the caches
    exchange    all-to-alls of 8 MiB, and of a few bytes

Each is the best of a few calls that all ranks begin together: what other work on the machine takes is no ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from hyena_ds.bench.engine_side import EngineSide, run_config
from hyena_ds.bench.measure import best_seconds, machine
from hyena_ds.config.model import ModelConfig
from hyena_ds.model.filter import FilterShape, ImplicitFilter, evaluate_filter, filter_gradients
from hyena_ds.ops.fft_convolution import causal_convolution, causal_convolution_backward, channels_at_once
from hyena_ds.ops.sizes import fft_length, tokens_of_a_tile
from hyena_ds.parallel.collectives import start_all_to_all
from hyena_ds.parallel.devices import Compute
from hyena_ds.training.engine import build_engine

_COPIED = 1 << 25
_EXCHANGED = 1 << 21
_FILTERED = 1 << 14
_TRANSFORMS = 9
"""Of one channel: 3 forward, 6 backward with the output made again."""


class Ceilings:
    """One rank."""

    def __init__(self, compute: Compute, width: int, lengths: list[int]):
        self.compute, self.width, self.lengths = compute, width, lengths
        self.on_cpu = not torch.cuda.is_available()

    def measure(self) -> dict[str, Any]:
        """Flops, bytes and seconds by name. Collective."""
        found: dict[str, Any] = {
            "gemm_float32": self._gemm(torch.float32),
            "gemm_bfloat16": self._gemm(torch.bfloat16),
            "filter": self._filter(),
            "copy": self._copy(),
            "kernel": self._kernel(),
            "transforms": [[fft_length(length), self._convolution(length)] for length in self.lengths],
            "exchange": None,
            "latency": None,
        }
        if self.compute.ranks > 1:
            found |= {"exchange": self._exchange(), "latency": self._latency()}
        return found

    def _seconds(self, work: Callable[[], Any], computes: bool = True) -> float:
        return best_seconds(self.compute, work, computes)

    def _tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.compute.device)

    def _gemm(self, dtype: torch.dtype) -> float:
        D = self.width
        n = tokens_of_a_tile(4 * D, self.on_cpu)
        flops, products = 0.0, []
        for rows, inner, columns in (
            (n, D, 3 * D),
            (n, D, D),
            (n, D, 4 * D),
            (n, 4 * D, D),
            (4 * D, n, D),
            (3 * D, n, D),
        ):
            a, b = self._tensor(rows, inner).to(dtype), self._tensor(inner, columns).to(dtype)
            products.append((a, b, a.new_empty(rows, columns)))
            flops += 2.0 * rows * inner * columns
        repeats = 20 if self.on_cpu else 5

        def work() -> None:
            for _ in range(repeats):
                for a, b, out in products:
                    torch.mm(a, b, out=out)

        return repeats * flops / self._seconds(work)

    def _convolution(self, length: int) -> float:
        d = self.width // self.compute.ranks
        g = channels_at_once(1, d, length, self.compute.device)
        u_BgL, dy_BgL, k_gL = self._tensor(1, g, length), self._tensor(1, g, length), self._tensor(g, length)
        points = fft_length(length)
        repeats = max(1, (1 << 21) // (g * points))

        def work() -> None:
            for _ in range(repeats):
                causal_convolution(u_BgL, k_gL)
                causal_convolution_backward(dy_BgL, u_BgL, k_gL, True)

        return repeats * g * _TRANSFORMS * 2.5 * points * math.log2(points) / self._seconds(work)

    def _filter(self) -> float:
        config = ModelConfig(width=self.width, layers=1, maximum_context=_FILTERED)
        shape = FilterShape(self.width, _FILTERED, _FILTERED, config.filter_features, 0.0)
        implicit_filter = ImplicitFilter(shape, config.filter_width, config.filter_frequency).to(self.compute.device)
        weights = type(implicit_filter.weights())(*(weight.detach() for weight in implicit_filter.weights()))
        dk_Dl = self._tensor(self.width, _FILTERED)

        def work() -> None:
            evaluate_filter(shape, weights, 0, _FILTERED)
            filter_gradients(shape, weights, 0, dk_Dl)

        E, F, D = config.filter_features, config.filter_width, self.width
        forward = 2 * (E * F + 2 * F**2 + F * D)
        # As hyena_ds.cost.work counts a step that evaluates the filter once.
        flops = 3 * forward - 2 * E * F + forward - 2 * F * D
        return _FILTERED * flops / self._seconds(work)

    def _copy(self) -> float:
        source = torch.ones(_COPIED, device=self.compute.device)
        target = torch.empty_like(source)
        return 2.0 * source.nbytes / self._seconds(lambda: target.copy_(source))

    def _kernel(self) -> float:
        """Seconds to start a kernel with next to no work."""
        small, count = self._tensor(4), 2000

        def work() -> None:
            for _ in range(count):
                small.add_(1.0)

        return self._seconds(work) / count

    def _exchange(self) -> float:
        group = dist.group.WORLD
        assert group is not None
        P = self.compute.ranks
        pieces = self._tensor(P, _EXCHANGED // P)
        return pieces.nbytes * (P - 1) / P / self._seconds(lambda: start_all_to_all(pieces, group).wait(), False)

    def _latency(self) -> float:
        group = dist.group.WORLD
        assert group is not None
        pieces, count = self._tensor(self.compute.ranks, 16), 20

        def work() -> None:
            for _ in range(count):
                start_all_to_all(pieces, group).wait()

        return self._seconds(work, False) / count


class PlannedStep(EngineSide):
    """One rank of the trainer's own step, with nothing run before it: what it held at most is the step's."""

    def prepare(self) -> dict[str, Any]:
        """Build the engine. Collective."""
        self.engine = build_engine(run_config(self.case), self.objective, self.compute.ranks)
        described = machine()
        if "accelerator" in described:
            described["accelerator_gib"] = torch.cuda.get_device_properties(self.compute.device).total_memory / 2**30
        return {"machine": described}
