"""Functions that run in every rank of a pool: the first argument is the rank's Compute.

B batch, l local length, L context length.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hyena_ds.parallel.layout as layout_module
import hyena_ds.training.engine as engine_module
from hyena_ds.checkpoints.engine_state import fragments
from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import MicroBatch
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import MASK
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.convolution_backend import FFT
from hyena_ds.parallel.collectives import Traffic
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import create_groups
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.tasks.task import Objective
from hyena_ds.training.back_ends import common_convolution
from hyena_ds.training.step import StepResult, train_step
from tests.cudnn_stand_in import ENOUGH, install
from tests.distributed.work import SEED, GlobalBatch, Grid, Trained, lively_model, run_config
from tests.pieces import small_pieces
from tests.poison import poisoned_by


@lru_cache
def _groups(compute: Compute) -> dict[int, dist.ProcessGroup]:
    """All groups that a grid of this world can need, made once."""
    return create_groups([s for s in (2, 4) if compute.ranks % s == 0], compute.rank, compute.ranks)


def _layout(compute: Compute, grid: Grid, context: int) -> Layout:
    return Layout.slice_of(context, grid.topology, compute.rank, _groups(compute))


def _call(compute: Compute, grid: Grid, context: int, config: RunConfig) -> ForwardPass:
    """As the trainer makes it."""
    policy, dtype = POLICIES[config.activation_policy], getattr(torch, config.precision)
    exchanged = getattr(torch, config.exchanged_in)
    return ForwardPass(_layout(compute, grid, context), policy=policy, compute_dtype=dtype, exchange_dtype=exchanged)


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _engine(
    compute: Compute,
    config: RunConfig,
    objective: Objective | HyenaDNA,
    optimizer: torch.optim.Optimizer | None,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[deepspeed.DeepSpeedEngine]:
    """The trainer's own engine, around the next token's loss of a model; under ZeRO-3 every parameter is sharded, however small."""
    original = engine_module.deepspeed_config

    def settings(config: RunConfig, ranks: int) -> dict[str, Any]:
        made = original(config, ranks)
        if config.zero_stage == 3:
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if change is not None:
            change(made)
        return made

    if isinstance(objective, HyenaDNA):
        objective = NextToken(objective)
    with _replaced(engine_module, "deepspeed_config", settings):
        engine = engine_module.build_engine(config, objective, compute.ranks, optimizer)
    try:
        yield engine
    finally:
        engine.destroy()


def _names(engine: deepspeed.DeepSpeedEngine) -> list[tuple[str, torch.nn.Parameter]]:
    return list(engine.module.named_parameters())


def _reduced_gradients(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """Collective. Valid between the last backward of a step and the update."""
    trained = [(name, parameter) for name, parameter in _names(engine) if parameter.requires_grad]
    return {name: safe_get_full_grad(parameter).detach().clone() for name, parameter in trained}


def _parameters(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    if engine.zero_optimization_stage() < 3:
        return {name: parameter.detach().clone() for name, parameter in _names(engine)}
    with deepspeed.zero.GatheredParameters([parameter for _, parameter in _names(engine)]):
        return {name: parameter.detach().clone() for name, parameter in _names(engine)}


def _masters(engine: deepspeed.DeepSpeedEngine, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    if engine.zero_optimization_stage() == 0:
        return {}
    full = {name: safe_get_full_fp32_param(parameter) for name, parameter in _names(engine)}
    return {name: tensor.detach().clone().view(shapes[name].shape) for name, tensor in full.items()}


def train(
    compute: Compute,
    grid: Grid,
    config: RunConfig,
    batches: list[GlobalBatch],
    rate: float,
    adamw: bool = False,
    autocast: bool = False,
) -> Trained:
    """Train the lively model on `batches` through the trainer's engine and step; SGD unless `adamw`."""
    model = lively_model(config.model)
    optimizer = None if adamw else torch.optim.SGD(model.parameters(), lr=rate)

    def change(settings: dict[str, Any]) -> None:
        if autocast:
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

    trained = Trained()
    with _engine(compute, config, model, optimizer, change) as engine:
        update = engine.step

        def capture_then_update() -> None:
            if not trained.first_gradients and engine.is_gradient_accumulation_boundary():
                trained.first_gradients = _reduced_gradients(engine)
            update()

        # Tiles of 5 tokens and groups of 3 transforms, so that these few tokens go through many, with remainders.
        with _replaced(engine, "step", capture_then_update), small_pieces():
            for step, batch in enumerate(batches):
                part = batch.on_rank(step, grid, compute.rank)
                call = _call(compute, grid, batch.token_ids_BL.shape[1], config)
                result = train_step(engine, part, call, compute, SEED, rate)
                trained.losses.append(result.loss)
                trained.norms.append(result.gradient_norm)
        trained.parameters = _parameters(engine)
        trained.masters = _masters(engine, trained.parameters)
    return trained


@dataclass
class Numbered:
    """What steps gave, and where they led."""

    results: list[StepResult]
    state: dict[str, Tensor]
    """Parameters and moments that this rank owns."""
    first_moments: list[Tensor]
    """After the first step."""


def train_numbered(
    compute: Compute, grid: Grid, config: RunConfig, steps: list[tuple[int, GlobalBatch]], gradient: bool
) -> Numbered:
    """Train the lively model with AdamW on numbered steps; sequences that hold a MASK spoil the loss or its gradient."""
    results: list[StepResult] = []
    first_moments: list[Tensor] = []
    poisoned = poisoned_by(MASK, gradient)(lively_model(config.model))
    with _engine(compute, config, poisoned, None) as engine:
        for step, batch in steps:
            call = _call(compute, grid, batch.token_ids_BL.shape[1], config)
            results.append(train_step(engine, batch.on_rank(step, grid, compute.rank), call, compute, SEED, 5e-3))
            if len(results) == 1:
                first_moments = [fragment.slices["exp_avg"].clone() for fragment in fragments(engine)]
        state = {
            f"{kind} {fragment.name} from {fragment.offset}": tensor.clone()
            for fragment in fragments(engine)
            for kind, tensor in fragment.slices.items()
        }
    return Numbered(results, state, first_moments)


def golden(
    compute: Compute, weights: str, shift: float, token_ids: Tensor, policy: PolicyName, zero_stage: int = 1
) -> dict[str, Any]:
    """This rank's logits, and loss and reduced gradients of the published weights, through the engine."""
    model = load_model(weights, shift=shift)
    grid = Grid(1, compute.ranks)
    L = token_ids.shape[1] - 1
    layout = _layout(compute, grid, L)
    here = slice(layout.offset, layout.offset + layout.local_length)
    inputs, targets = token_ids[:, :-1][:, here].contiguous(), token_ids[:, 1:][:, here].contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: dict[str, Any] = {}
    config = run_config(grid, zero_stage=zero_stage, activation_policy=policy)
    with _engine(compute, config, model, optimizer) as engine, small_pieces(17, 3):
        with (
            torch.no_grad(),
            deepspeed.zero.GatheredParameters([p for _, p in _names(engine)], enabled=zero_stage == 3),
        ):
            seen["logits"] = engine.module.logits(inputs, _call(compute, grid, L, config))
        # Not train_step: its dropout key would drop, and the recorded tensors are without dropout.
        batch = MicroBatch(inputs, targets, torch.arange(len(inputs)))
        loss_sum, _ = engine(batch, _call(compute, grid, L, config))
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(loss_sum * (compute.ranks / (token_ids.shape[0] * L)), scale_wrt_gas=False)
        seen["gradients"] = _reduced_gradients(engine)
        engine.step()
        seen["loss_sum"] = float(loss_sum.detach())
    return seen


@torch.no_grad()
def logits(compute: Compute, config: RunConfig, grid: Grid, token_ids_BL: Tensor, plant: bool = False) -> Tensor:
    """This rank's logits (B, l, V). `plant` moves the long convolution's output one token into the past."""
    layout = _layout(compute, grid, token_ids_BL.shape[1])

    def looks_ahead(u_BdL: Tensor, k_dL: Tensor) -> Tensor:
        return torch.roll(FFT.forward(u_BdL, k_dL), -1, dims=-1)

    convolution = replace(FFT, forward=looks_ahead) if plant else FFT
    with small_pieces(99, 24):
        here = slice(layout.offset, layout.offset + layout.local_length)
        call = ForwardPass(layout, policy=POLICIES[config.activation_policy], convolution=convolution)
        return lively_model(config.model)(token_ids_BL[:, here].contiguous(), call)


def convolution(compute: Compute, wanted: str, with_cudnn: list[int]) -> tuple[str, str]:
    """(name, why) of the back end that a run takes, or ("refused", the sentence). Ranks of `with_cudnn` have a stand-in
    for cuDNN, the others one that is too old; where none has one, no rank has a GPU."""
    config = run_config(Grid(1, compute.ranks), convolution=wanted)
    with pytest.MonkeyPatch.context() as patch:
        if with_cudnn:
            install(patch, version=ENOUGH if compute.rank in with_cudnn else ENOUGH - 100)
        try:
            choice = common_convolution(config, compute)
        except UserError as error:
            return "refused", str(error)
    return choice.convolution.name, choice.why


def group_sum(compute: Compute) -> int:
    """Sum of the ranks' numbers, through the process group."""
    total = torch.tensor(compute.rank)
    dist.all_reduce(total)
    return int(total)


def raise_on(compute: Compute, rank: int) -> None:
    """One rank raises while the others wait for it."""
    if compute.rank == rank:
        raise ValueError(f"planted on rank {rank}")
    dist.barrier()


def hang_on(compute: Compute, rank: int) -> None:
    """One rank never comes back."""
    if compute.rank == rank:
        time.sleep(3600)


def die_on(compute: Compute, rank: int) -> None:
    """One rank's process ends while the others wait for it."""
    if compute.rank == rank:
        os._exit(1)
    dist.barrier()


def through_channels(compute: Compute, x: Tensor, sp: int, at_once: int, in_place: bool) -> dict[str, Any]:
    """This rank's outputs of a work on two tensors, and in which order exchanges were started and work was done."""
    L = x.shape[-1]
    layout = _layout(compute, Grid(1, sp), L)
    here = slice(layout.offset, layout.offset + layout.local_length)
    inputs = [tensor[..., here].clone() for tensor in x]
    outputs = inputs if in_place else [torch.empty_like(tensor) for tensor in inputs]
    own = layout.exchange.own_channels(x.shape[2]).start
    events: list[str] = []
    start = layout_module.start_all_to_all

    def logged(*arguments: Any) -> Any:
        events.append("start")
        return start(*arguments)

    def work(channels: slice, a_BgL: Tensor, b_BgL: Tensor) -> tuple[Tensor, Tensor]:
        events.append("work")
        scale = torch.arange(own + channels.start + 1.0, own + channels.start + 1.0 + a_BgL.shape[1])
        return a_BgL.cumsum(-1) * scale.view(-1, 1), b_BgL.flip(-1)

    with _replaced(layout_module, "start_all_to_all", logged):
        layout.exchange.through_channels(inputs, outputs, work, at_once)
    return {"outputs": outputs, "events": events}


def checkpointed(compute: Compute, config: RunConfig, grid: Grid, batch: GlobalBatch) -> list[list[Tensor]]:
    """Gradients of a block's parameters and input on this rank, plain and inside torch's activation checkpointing."""
    part = batch.on_rank(0, grid, compute.rank).micro_batches[0]
    layout = _layout(compute, grid, batch.token_ids_BL.shape[1])
    backbone = lively_model(config.model).backbone
    block = backbone.blocks[0]
    found = []
    for wrapped in (False, True):
        r_BlD = backbone.embedding(part.token_ids_Bl).detach().requires_grad_()
        call = ForwardPass(layout, policy=POLICIES[config.activation_policy])
        out = checkpoint(block, r_BlD, call, use_reentrant=False) if wrapped else block(r_BlD, call)
        found.append(list(torch.autograd.grad(out.square().sum(), (r_BlD, *block.parameters()))))
    return found


def bytes_sent(compute: Compute, config: RunConfig, grid: Grid, batch: GlobalBatch) -> dict[str, int]:
    """What this rank sends to others in one forward and in its backward, without the halo."""
    traffic = Traffic()
    L = batch.token_ids_BL.shape[1]
    layout = Layout.slice_of(L, grid.topology, compute.rank, _groups(compute), traffic)
    part = batch.on_rank(0, grid, compute.rank).micro_batches[0]
    call = ForwardPass(layout, policy=POLICIES[config.activation_policy])
    loss, _ = NextToken(lively_model(config.model)).loss(part.token_ids_Bl, part.targets, call)
    forward = traffic.bytes_sent
    loss.backward()
    return {"forward": forward, "backward": traffic.bytes_sent - forward}
