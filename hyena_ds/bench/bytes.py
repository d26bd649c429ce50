"""`hyena-ds bench bytes`: what a micro step of a config's model gives a GPU to do, counted on the meta device, without one.

    a row for each policy and precision: bytes, kernels, live memory, host copies, exchanges; beside them a floor
    below: the same bytes by file and by operation

Forward and backward of one sequence on one rank; other ranks are torch's fake process group. The optimizer is not counted.
The device path is chosen by `device.type != "cpu"`, so these are the tiles, groups and kernels of a GPU.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from hyena_ds.bench.count import FFT_PASSES, Count
from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import machine
from hyena_ds.bench.report import Column, Row, print_table
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.traffic import fused_bytes
from hyena_ds.data.loader import MicroBatch
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.training.step import scaled_loss

_SHOWN = 14
"""Files and operations that are listed, those with the most bytes."""
_RANK = 1
"""Whose share is counted: neither the first nor, among more than two, the last, so it has both neighbours."""


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each policy and precision, printed too, and the machine, which has no part in the numbers."""
    back_ends = back_ends_of(options.kernels)
    config = load_yaml(options.config, RunConfig)
    length = options.context_length or max(stage.context_length for stage in config.schedule)
    model = replace(config.model, maximum_context=max(config.model.maximum_context, length))
    P = options.sequence_parallel
    if P < 1 or length < 2 * P or length % P or model.width % P:
        raise UserError(
            f"--sequence-parallel: found {P} for {length} tokens and width {model.width}, wanted a divisor of both, with "
            "2 tokens a rank or more"
        )
    rows = []
    for precision in options.precision:
        for policy in options.policy:
            say(f"counting {policy}, {precision}")
            shape = StepShape(model, length, sequence_parallel=P, policy=policy, precision=precision)
            rows.append(count_micro_step(shape, *back_ends))
    print_table(
        _COLUMNS, rows, f"a transform counts as {FFT_PASSES} passes through memory; the optimizer is not counted"
    )
    for by in ("file", "operation"):
        print_table(_columns_by(by, rows), _rows_by(by, rows))
    return rows, machine()


def back_ends_of(wanted: str) -> tuple[Kernels | None, Convolution]:
    """The kernels that --kernels names, None for the portable code, and the long convolution beside them.

    Raises UserError where there are none.
    """
    if wanted == "portable":
        return None, FFT
    if wanted not in ("triton", "fused"):
        raise UserError(f"--kernels: found {wanted}, wanted portable, triton or fused: this version has no others")
    try:
        from hyena_ds.model.triton_kernels import TRITON
        from hyena_ds.ops.triton.long_convolution import FUSED
    except ImportError as error:
        raise UserError(
            f"--kernels: found no triton that can be imported ({error}), wanted its kernels; pip install 'hyena-ds[triton]'"
        ) from error
    return TRITON, FUSED if wanted == "fused" else FFT


def count_micro_step(shape: StepShape, kernels: Kernels | None = None, convolution: Convolution = FFT) -> Row:
    """What forward and backward of one sequence of `shape` do on one rank; by default the portable code."""
    name = "portable" if kernels is None else kernels.name if convolution is FFT else convolution.name
    traffic = Traffic()
    with fake_ranks(shape.sequence_parallel) as rank:
        groups = create_groups([shape.sequence_parallel], rank, shape.sequence_parallel)
        topology = Topology(1, shape.sequence_parallel)
        layout = Layout.slice_of(shape.context_length, topology, rank, groups, traffic)
        count = _counted(shape, layout, kernels, convolution)
    by_file: Counter[str] = Counter()
    by_operation: Counter[str] = Counter()
    for (place, operation), moved in count.bytes.items():
        by_file[place.partition(":")[0]] += moved
        by_operation[operation] += moved
    return {
        "side": f"{shape.policy}, {shape.precision}" + ("" if kernels is None else f", {name}"),
        "status": "measured",
        "context_length": shape.context_length,
        "width": shape.width,
        "layers": shape.layers,
        "sequence_parallel": shape.sequence_parallel,
        "policy": shape.policy,
        "precision": shape.precision,
        "kernels_of": name,
        "total_bytes": count.bytes.total(),
        "floor_bytes": round(fused_bytes(shape)),
        "kernels": count.kernels.total(),
        "live_peak_gib": count.peak / 2**30,
        "host_copies": count.host_copies.total(),
        "bytes_sent": traffic.bytes_sent,
        "collectives_started": traffic.started,
        "collectives_awaited": traffic.awaited,
        "bytes_by_file": dict(by_file.most_common()),
        "bytes_by_operation": dict(by_operation.most_common()),
        "host_copies_by_line": dict(count.host_copies),
    }


@contextmanager
def fake_ranks(ranks: int) -> Iterator[int]:
    """A process group of so many ranks that exchange nothing; gives the number of this one."""
    if ranks == 1:
        yield 0
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=_RANK, world_size=ranks)
    try:
        yield _RANK
    finally:
        dist.destroy_process_group()


def _counted(shape: StepShape, layout: Layout, kernels: Kernels | None, convolution: Convolution) -> Count:
    meta = torch.device("meta")
    with meta:
        objective = NextToken(HyenaDNA(shape.config))
    ids_Bl = torch.zeros((shape.batch, shape.local_length), dtype=torch.int64)
    read = MicroBatch(ids_Bl, ids_Bl, torch.arange(shape.batch))
    dtype = getattr(torch, shape.precision)
    call = ForwardPass(
        layout,
        policy=shape.activation_policy,
        compute_dtype=dtype,
        exchange_dtype=dtype,
        convolution=convolution,
        kernels=kernels,
    )
    count = Count()
    count.hold(objective.parameters())
    with count:
        batch = read.to(meta)
        loss, _ = objective(batch, replace(call, dropout=DropoutKey(1, 2, batch.samples_B), filters=FilterCache()))
        scaled_loss(loss, 1.0 / shape.tokens).backward()
    return count


def _rows_by(by: str, rows: list[Row]) -> list[Row]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row[f"bytes_by_{by}"])
    return [{"status": "measured", "name": name} for name, _ in total.most_common(_SHOWN)]


def _columns_by(by: str, rows: list[Row]) -> list[Column]:
    def shown(moved: Mapping[str, int], row: Row) -> str:
        return f"{moved.get(row['name'], 0) / 1e9:,.1f}"

    return [(f"GB by {by}", lambda row: row["name"])] + [
        (row["side"], partial(shown, row[f"bytes_by_{by}"])) for row in rows
    ]


_COLUMNS: list[Column] = [
    ("a micro step", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("sp", lambda row: str(row["sequence_parallel"])),
    ("GB", lambda row: f"{row['total_bytes'] / 1e9:,.1f}"),
    ("floor GB", lambda row: f"{row['floor_bytes'] / 1e9:,.1f}"),
    ("kernels", lambda row: f"{row['kernels']:,}"),
    ("live peak GiB", lambda row: f"{row['live_peak_gib']:.2f}"),
    ("host copies", lambda row: str(row["host_copies"])),
    ("GB sent", lambda row: f"{row['bytes_sent'] / 1e9:.2f}"),
    ("exchanges awaited", lambda row: f"{row['collectives_awaited']} of {row['collectives_started']}"),
]
