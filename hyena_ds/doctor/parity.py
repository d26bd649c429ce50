"""The config's model on a short context: loss and gradients with the sequence whole, and cut across ranks.

    model, tokens (the same on every rank) --whole, on each rank alone--> loss, gradients
                                           --cut in P, exchanged--------> loss, gradients, summed over the group

B = 1, L context length, P sequence-parallel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.policy import POLICIES
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import A, T
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.training.back_ends import common_back_ends

LOCAL_LENGTH = 256
"""Tokens of a rank's slice, at most."""


def cut_stages(config: RunConfig, ranks: int) -> dict[int, list[StageConfig]]:
    """The stages whose sequences are cut, by sequence-parallel size: as a run on so many ranks cuts them, which is wider than
    configured where rows would outnumber sequences. Where there is no such run, as they are configured.
    """
    try:
        stages = [plan.config for plan in plan_stages(config, ranks)]
    except UserError:
        stages = [*config.schedule]
    cut: dict[int, list[StageConfig]] = {}
    for stage in stages:
        if stage.sequence_parallel > 1:
            cut.setdefault(stage.sequence_parallel, []).append(stage)
    return cut


def parity(config: RunConfig, compute: Compute, stages: Sequence[StageConfig]) -> dict[str, Any]:
    """How far loss and gradients with the sequence cut are from those of the whole. Collective.

    `stages` are of one sequence-parallel size, which divides the ranks.
    """
    size = stages[0].sequence_parallel
    L = size * min(LOCAL_LENGTH, *(stage.local_length for stage in stages))
    ids = torch.randint(A, T + 1, (1, L + 1), generator=torch.Generator().manual_seed(config.seed)).to(compute.device)
    groups = create_groups([size], compute.rank, compute.ranks)
    layout = Layout.slice_of(L, Topology(compute.ranks // size, size), compute.rank, groups)
    back_ends = common_back_ends(config, compute)
    settings: dict[str, Any] = {
        "policy": POLICIES[stages[0].activation_policy or config.activation_policy],
        "compute_dtype": getattr(torch, config.precision),
        "convolution": back_ends.convolution,
        "kernels": back_ends.kernels,
    }
    model = NextToken(build_model(config.model, config.seed).to(compute.device))
    whole = _loss_and_gradients(model, ids, ForwardPass(Layout.whole(L), **settings))
    cut = _loss_and_gradients(model, ids, ForwardPass(layout, **settings))
    for tensor in cut:
        dist.all_reduce(tensor, group=groups[size])
    differences = [float((found - wanted).norm() / wanted.norm()) for found, wanted in zip(cut, whole, strict=True)]
    # amax is NaN where one of them is; max would pass it over.
    loss, gradient = torch.tensor(from_every_rank(differences), dtype=torch.float64).amax(0).tolist()
    found = {"context": L, "loss": loss, "gradient": gradient}
    return {**found, "precision": config.precision, "back_end": back_ends.convolution.name}


def _loss_and_gradients(model: NextToken, ids_BL: Tensor, call: ForwardPass) -> tuple[Tensor, Tensor]:
    """The summed loss of the tokens that are here, and all gradients of it end to end; float64."""
    model.zero_grad()
    here = call.layout.tokens
    loss, _ = model.loss(ids_BL[:, :-1][:, here].contiguous(), ids_BL[:, 1:][:, here].contiguous(), call)
    loss.backward()
    gradients = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return loss.detach().double().view(1), torch.cat(gradients).double()
