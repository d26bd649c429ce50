"""How the passes of a stage run on a rank, and which part of every batch is its own."""

from __future__ import annotations

import torch
import torch.distributed as dist

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.policy import POLICIES
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology
from hyena_ds.training.back_ends import BackEnds


def pass_of_stage(
    plan: StagePlan,
    config: RunConfig,
    compute: Compute,
    groups: dict[int, dist.ProcessGroup],
    back_ends: BackEnds | None = None,
    traffic: Traffic | None = None,
) -> tuple[ForwardPass, Slice]:
    """How the passes of `plan` run on this rank, counting their `traffic`, and its part of every batch."""
    convolution, kernels, _ = back_ends or BackEnds()
    topology = Topology(plan.data_parallel, plan.config.sequence_parallel)
    layout = Layout.slice_of(plan.config.context_length, topology, compute.rank, groups, traffic)
    policy = POLICIES[plan.activation_policy]
    dtypes = {"compute_dtype": getattr(torch, config.precision), "exchange_dtype": getattr(torch, config.exchanged_in)}
    call = ForwardPass(layout, policy=policy, convolution=convolution, kernels=kernels, **dtypes)
    return call, Slice(topology.row(compute.rank), layout.offset, layout.local_length)
