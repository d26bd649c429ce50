"""What this machine can do at most: the ceilings that a step's time is compared with.

    GEMM       best over a few shapes, square and those of a layer, float32 and bfloat16
    FFT        batched real transforms of the step's own length, 2.5 n log2 n flops each
    copy       of memory larger than the caches, bytes read and written
    exchange   all-to-all between the ranks, bytes that a rank sends; its values are checked

Every rank measures while the others do, as in a step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from hyena_ds.bench.measure import best_seconds, machine
from hyena_ds.bench.processes import WrongValue
from hyena_ds.ops.sizes import fft_length
from hyena_ds.parallel.collectives import start_all_to_all
from hyena_ds.parallel.devices import Compute

_GEMMS = ((1024, 1024, 1024), (16384, 128, 512), (16384, 512, 128))
_DEVICE_GEMMS = ((8192, 8192, 8192), (131072, 256, 1024), (131072, 1024, 256))
_FFT_BATCH = 16
_FFT_ELEMENTS = 1 << 26
_COPIED = 1 << 25
_EXCHANGED = 1 << 22


class Machine:
    """One rank."""

    def __init__(self, compute: Compute, context_length: int):
        self.compute = compute
        self.context_length = context_length

    def rates(self) -> dict[str, Any]:
        """Flops and bytes a second by part, points of the FFT, and the machine in words. Collective."""
        points = fft_length(self.context_length)
        return {
            "gemm_float32": self._gemm(torch.float32),
            "gemm_bfloat16": self._gemm(torch.bfloat16),
            "fft": self._fft(points),
            "copy": self._copy(),
            "exchange": self._exchange() if self.compute.ranks > 1 else None,
            "fft_points": points,
            "machine": machine(),
        }

    def _gemm(self, dtype: torch.dtype) -> float:
        best = 0.0
        for rows, inner, columns in _DEVICE_GEMMS if torch.cuda.is_available() else _GEMMS:
            a = torch.randn(rows, inner, device=self.compute.device).to(dtype)
            b = torch.randn(inner, columns, device=self.compute.device).to(dtype)
            out = a.new_empty(rows, columns)
            seconds = best_seconds(self.compute, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc]
            best = max(best, 2.0 * rows * inner * columns / seconds)
        return best

    def _fft(self, points: int) -> float:
        rows = max(1, min(_FFT_BATCH, _FFT_ELEMENTS // points))
        x = torch.randn(rows, points, device=self.compute.device)
        spectrum = torch.fft.rfft(x)
        seconds = best_seconds(self.compute, lambda: torch.fft.rfft(x, out=spectrum))
        return rows * 2.5 * points * math.log2(points) / seconds

    def _copy(self) -> float:
        source = torch.ones(_COPIED, device=self.compute.device)
        target = torch.empty_like(source)
        return 2.0 * source.nbytes / best_seconds(self.compute, lambda: target.copy_(source))

    def _exchange(self) -> float:
        group = dist.group.WORLD
        assert group is not None
        P, rank = self.compute.ranks, self.compute.rank
        pieces = (
            torch.arange(P, device=self.compute.device).add(100 * rank).float().view(P, 1).repeat(1, _EXCHANGED // P)
        )
        received = start_all_to_all(pieces, group).wait()
        wanted = torch.arange(P, device=self.compute.device).mul(100).add(rank).float().view(P, 1)
        if not bool((received == wanted).all()):
            raise WrongValue(f"all-to-all between {P} ranks: rank {rank} received other values than were sent to it")
        seconds = best_seconds(self.compute, lambda: start_all_to_all(pieces, group).wait(), computes=False)
        return pieces.nbytes * (P - 1) / P / seconds
