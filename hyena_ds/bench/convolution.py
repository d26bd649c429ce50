"""`hyena-ds bench convolution`: the long convolution, forward and backward, beside plain autograd on torch.fft.

    u (B, d, L), k (d, L), dy (B, d, L) --ours: some channels at a time--> y, du, dk
                                        --autograd: all channels------->

A rank of P has d = width / P channels and all L tokens: one process computes one rank's part. Values of a few channels
are compared with a float64 convolution first.

B batch, d channels, L context length, n points of the FFT.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyena_ds.bench.case import SEED, Case
from hyena_ds.bench.limits import Limits, measure_a_part, say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, shown_spread, spread
from hyena_ds.bench.turns import Sides, Turn
from hyena_ds.ops.fft_convolution import causal_convolution, causal_convolution_backward, channels_at_once
from hyena_ds.ops.sizes import fft_length
from hyena_ds.parallel.devices import Compute
from hyena_ds.text import number

KINDS = {"hyena-ds": "hyena-ds, some channels at a time", "autograd": "autograd of torch.fft, all channels"}
TRANSFORMS = {"forward": 3, "backward": 5}
"""Transforms of a channel at batch 1: u, k, y; then u, k, dy, du, dk."""
_TOLERANCE = 1e-5
_CHECKED_CHANNELS = 3

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each kind, context length and allocator."""
    return measure_a_part(options, _turns, _COLUMNS)


class Convolution:
    """One process; `kind` is a key of KINDS."""

    def __init__(self, compute: Compute, case: Case, kind: str):
        self.compute, self.kind = compute, kind
        channels = case.width // case.sequence_parallel
        generator = torch.Generator().manual_seed(SEED)
        shape = (case.batch, channels, case.context_length)
        self.u, self.dy = (torch.randn(shape, generator=generator).to(compute.device) for _ in range(2))
        self.k = (torch.randn(shape[1:], generator=generator) / math.sqrt(case.context_length)).to(compute.device)

    def check(self) -> None:
        """Raises WrongValue."""
        if self.kind == "hyena-ds":
            check_convolution(forward, backward, self.u, self.k, self.dy)
        else:
            check_convolution(_autograd_forward, _autograd_backward, self.u, self.k, self.dy)

    def turn(self) -> dict[str, float]:
        """Seconds of one forward and one backward."""
        if self.kind == "hyena-ds":
            first = timed(self.compute, lambda: forward(self.u, self.k))
            second = timed(self.compute, lambda: backward(self.dy, self.u, self.k))
        else:
            u, k = self.u.clone().requires_grad_(), self.k.clone().requires_grad_()
            first = timed(self.compute, lambda: _autograd_forward(u, k))
            second = timed(self.compute, lambda: first.result.backward(self.dy))
        seconds = {"forward": first.wall_seconds, "backward": second.wall_seconds}
        return {**second.answer(), **seconds, "cpu_seconds": first.cpu_seconds + second.cpu_seconds}


def forward(u_BdL: Tensor, k_dL: Tensor) -> Tensor:
    """y, as the operator computes it: in groups of channels."""
    y_BdL = torch.empty_like(u_BdL)
    for group in _groups(u_BdL):
        y_BdL[:, group] = causal_convolution(u_BdL[:, group], k_dL[group])
    return y_BdL


def backward(dy_BdL: Tensor, u_BdL: Tensor, k_dL: Tensor) -> tuple[Tensor, Tensor]:
    """(du, dk)."""
    du_BdL, dk_dL = torch.empty_like(u_BdL), torch.empty_like(k_dL)
    for group in _groups(u_BdL):
        du_BdL[:, group], dk_dL[group], _ = causal_convolution_backward(
            dy_BdL[:, group], u_BdL[:, group], k_dL[group], again=False
        )
    return du_BdL, dk_dL


def check_convolution(forward: Forward, backward: Backward, u: Tensor, k: Tensor, dy: Tensor) -> None:
    """Raise WrongValue unless y, du and dk of a few channels are those of a float64 convolution.

    y[t] = sum of k[s] u[t - s];  du[s] = sum of k[t - s] dy[t];  dk[s] = sum of u[t - s] dy[t], over the batch too.
    """
    channels = sorted({round(i * (k.shape[0] - 1) / (_CHECKED_CHANNELS - 1)) for i in range(_CHECKED_CHANNELS)})
    few = (u[:, channels].contiguous(), k[channels].contiguous(), dy[:, channels].contiguous())
    u64, k64, dy64 = (x.double() for x in few)
    du, dk = backward(few[2], few[0], few[1])
    wanted = {
        "y": (forward(few[0], few[1]), convolve64(u64, k64)),
        "du": (du, convolve64(dy64.flip(-1), k64).flip(-1)),
        "dk": (dk, convolve64(dy64.flip(-1), u64).flip(-1).sum(0)),
    }
    for name, (found, exact) in wanted.items():
        check_against(exact, found, f"convolution: {name}")


def check_against(exact: Tensor, found: Tensor, what: str) -> None:
    """Raise WrongValue unless `found` is what was computed in float64."""
    error = float((found.detach().double() - exact).abs().max() / exact.abs().max())
    if not error <= _TOLERANCE:
        raise WrongValue(
            f"{what} is off by {error:.1e} of its largest value, wanted at most {_TOLERANCE:.0e} from float64; nothing was "
            "timed: report it"
        )


def convolve64(a: Tensor, b: Tensor) -> Tensor:
    """The causal convolution in float64: complex transforms of 4L points, unlike anything that is tested with it."""
    points = 4 * a.shape[-1]
    return torch.fft.ifft(torch.fft.fft(a, points) * torch.fft.fft(b, points)).real[..., : a.shape[-1]]


def _autograd_forward(u: Tensor, k: Tensor) -> Tensor:
    L = u.shape[-1]
    n = fft_length(L)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :L]


def _autograd_backward(dy: Tensor, u: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    u, k = u.clone().requires_grad_(), k.clone().requires_grad_()
    du, dk = torch.autograd.grad(_autograd_forward(u, k), (u, k), dy)
    return du, dk


def _groups(u_BdL: Tensor) -> list[slice]:
    B, d, L = u_BdL.shape
    size = channels_at_once(B, d, L, u_BdL.device)
    return [slice(first, min(first + size, d)) for first in range(0, d, size)]


def _turns(case: Case, rounds: int, limits: Limits) -> list[Row]:
    rates, channels = limits.of(case), case.width // case.sequence_parallel
    known = {"allocator": case.allocator, "context_length": case.context_length, "batch": case.batch}
    known |= {"fft_points": fft_length(case.context_length), "channels": channels, "threads": case.threads}
    allocator = "" if case.allocator == "tuned" else ", default allocator"
    rows: dict[str, Row] = {
        kind: {"side": f"{label}{allocator}", "kind": kind, "status": "measured", **known}
        for kind, label in KINDS.items()
    }
    say(f"starting {' and '.join(KINDS.values())} at {case.context_length:,} tokens")
    worker = "hyena_ds.bench.convolution:Convolution"
    with Sides(rows) as sides:
        sides.start(
            {kind: Ranks(worker, 1, False, case.threads, case.allocator, case=case, kind=kind) for kind in KINDS}
        )
        for method in ("check", "turn"):
            for kind in sides.alive():
                sides.ask(kind, method)
        turns = sides.take_turns("turn", rounds)
        for kind in sides.alive():
            _add(rows[kind], [turn for (turn,) in turns[kind]], rates.fft)
    return list(rows.values())


def _add(row: Row, turns: Turn, rate: float) -> None:
    """Rates count what must be transformed, whatever a side really does."""
    transform = 2.5 * row["fft_points"] * math.log2(row["fft_points"]) * row["channels"]
    for part, count in TRANSFORMS.items():
        of_filter = 1 if part == "forward" else 2
        flops = transform * ((count - of_filter) * row["batch"] + of_filter)
        row[f"{part}_seconds"] = spread(turn[part] for turn in turns)
        row[f"{part}_gflops"] = flops / row[f"{part}_seconds"]["median"] / 1e9
        row[f"{part}_share_of_fft_limit"] = flops / row[f"{part}_seconds"]["median"] / rate
    row["cpu_seconds"] = spread(turn["cpu_seconds"] for turn in turns)
    row["peak_memory_gib"] = turns[-1]["peak_memory_gib"]


_COLUMNS: list[Column] = [
    ("convolution", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("channels", lambda row: str(row["channels"])),
    ("forward s", lambda row: shown_spread(row, "forward_seconds")),
    ("GF/s", lambda row: number(row["forward_gflops"])),
    ("of the limit", lambda row: f"{row['forward_share_of_fft_limit']:.0%}"),
    ("backward s", lambda row: shown_spread(row, "backward_seconds")),
    ("GF/s", lambda row: number(row["backward_gflops"])),
    ("of the limit", lambda row: f"{row['backward_share_of_fft_limit']:.0%}"),
    ("CPU s", lambda row: number(row["cpu_seconds"]["median"])),
    ("peak GiB", lambda row: number(row["peak_memory_gib"])),
]
