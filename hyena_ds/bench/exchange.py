"""`hyena-ds bench exchange`: activations from tokens to channels and back, between ranks.

    x_BDl --all-to-all--> x_BgL --nothing, or the long convolution--> y_BgL --all-to-all--> y_BDl

in groups of channels, whose exchange overlaps the work, and all channels at once. Values are checked first: without work
everything comes back where it was; with it, a few channels are those of a float64 convolution.

B batch, D width, L context length, l local length, g some of a rank's own channels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyena_ds.bench.case import SEED, Case
from hyena_ds.bench.convolution import check_against, convolve64
from hyena_ds.bench.limits import Limits, measure_a_part, say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, shown_spread, spread_of_turns
from hyena_ds.bench.turns import interleaved
from hyena_ds.errors import UserError
from hyena_ds.ops.fft_convolution import causal_convolution, channels_at_once
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.text import number

WORK = ("nothing", "convolution")
AT_ONCE = ("groups of channels", "all channels at once")


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each work, way, context length and allocator."""
    if options.sequence_parallel < 2:
        raise UserError(f"--sequence-parallel: found {options.sequence_parallel}, wanted 2 or more ranks to exchange")
    return measure_a_part(options, _turns, _COLUMNS)


class ExchangeRank:
    """One rank, with its slice of a sequence that every rank can make."""

    def __init__(self, compute: Compute, case: Case):
        self.compute, self.case = compute, case
        self.traffic = Traffic()
        groups = create_groups([case.sequence_parallel], compute.rank, compute.ranks)
        topology = Topology(1, case.sequence_parallel)
        self.layout = Layout.slice_of(case.context_length, topology, compute.rank, groups, self.traffic)
        self.channels = self.layout.exchange.own_channels(case.width)
        k_DL = torch.stack([self._filter(number) for number in range(case.width)][self.channels])
        self.k_dL = k_DL.to(compute.device)
        x_BDl = torch.stack([self._channel(0, number)[:, self.layout.tokens] for number in range(case.width)], dim=1)
        self.x_BDl = x_BDl.to(compute.device)
        self.y_BDl = torch.empty_like(self.x_BDl)

    def check(self) -> None:
        """Raises WrongValue. Collective."""
        for at_once in AT_ONCE:
            self._through("nothing", at_once)
            if not torch.equal(self.y_BDl, self.x_BDl):
                raise WrongValue(f"exchange in {at_once}: rank {self.compute.rank} got other values back than it sent")
            self._through("convolution", at_once)
            for channel in (0, self.case.width - 1):
                exact = convolve64(self._channel(0, channel).double(), self._filter(channel).double())[
                    :, self.layout.tokens
                ]
                what = f"convolution across ranks in {at_once}: channel {channel}"
                check_against(exact, self.y_BDl[:, channel].cpu(), what)

    def turn(self, work: str, at_once: str) -> dict[str, float]:
        """Once through. Collective."""
        sent = self.traffic.bytes_sent
        once = timed(self.compute, lambda: self._through(work, at_once))
        return {**once.answer(), "bytes_sent": self.traffic.bytes_sent - sent}

    def _through(self, work: str, at_once: str) -> None:
        d = self.k_dL.shape[0]
        L = self.case.context_length
        size = channels_at_once(self.case.batch, d, L, self.compute.device) if at_once == AT_ONCE[0] else d

        def through(channels: slice, u_BgL: Tensor) -> Sequence[Tensor]:
            return (causal_convolution(u_BgL, self.k_dL[channels]) if work == "convolution" else u_BgL,)

        self.layout.exchange.through_channels((self.x_BDl,), (self.y_BDl,), through, size)

    def _filter(self, number_of_channel: int) -> Tensor:
        """(L,), the same on every rank."""
        return self._channel(1, number_of_channel)[0] / math.sqrt(self.case.context_length)

    def _channel(self, what: int, number_of_channel: int) -> Tensor:
        """(B, L) of activations (0) or of the filter (1); the same on every rank."""
        generator = torch.Generator().manual_seed(SEED + 2 * number_of_channel + what)
        return torch.randn((self.case.batch, self.case.context_length), generator=generator)


def _turns(case: Case, rounds: int, limits: Limits) -> list[Row]:
    rates, P = limits.of(case), case.sequence_parallel
    say(f"starting {P} ranks at {case.context_length:,} tokens")
    with Ranks("hyena_ds.bench.exchange:ExchangeRank", P, True, case.threads, case.allocator, case=case) as ranks:
        ranks.ask("check")
        asks = {
            (work, at_once): partial(ranks.ask, "turn", work=work, at_once=at_once)
            for work in WORK
            for at_once in AT_ONCE
        }
        turns = interleaved(asks, rounds)
    rows = []
    for (work, at_once), answers in turns.items():
        row: Row = {"side": f"{work}, {at_once}", "work": work, "at_once": at_once, "status": "measured"}
        row |= {"allocator": case.allocator, "context_length": case.context_length, "width": case.width}
        row |= {"batch": case.batch, "sequence_parallel": P, "threads": case.threads, **spread_of_turns(answers)}
        row["bytes_sent"] = max(answer["bytes_sent"] for answer in answers[-1])
        row["bytes_minimum"] = 2 * 4 * case.batch * case.width * case.local_length * (P - 1) // P
        rate = row["bytes_sent"] / row["wall_seconds"]["median"]
        row["gigabytes_per_second"] = rate / 1e9
        row["share_of_exchange_limit"] = rate / rates.exchange if rates.exchange else None
        rows.append(row)
    return rows


_COLUMNS: list[Column] = [
    ("work on the way", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("s: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("CPU s, all ranks", lambda row: shown_spread(row, "cpu_seconds")),
    ("MiB sent / least", lambda row: f"{number(row['bytes_sent'] / 2**20)} / {number(row['bytes_minimum'] / 2**20)}"),
    ("GB/s a rank", lambda row: number(row["gigabytes_per_second"])),
    ("of the limit", lambda row: f"{row['share_of_exchange_limit']:.0%}"),
]
