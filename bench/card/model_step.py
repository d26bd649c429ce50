"""One micro step of the published shape, without the engine: what a card spends on the model itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.card.rows import CARD, DEVICE, seconds
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES
from hyena_ds.data.loader import MicroBatch
from hyena_ds.model.backbone import build_model
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.training.graphs import GraphedForward


def large_model(width: int = 256, layers: int = 8, maximum_context: int = 1_000_002) -> ModelConfig:
    """The shape of configs/large-1m.yaml."""
    return ModelConfig(
        width=width, layers=layers, inner_width=4 * width, maximum_context=maximum_context, embedding_dropout=0.1
    )


def training_step(
    length: int, batch: int, policy: str, precision: torch.dtype, graph: bool = False
) -> Callable[[], None]:
    """A function that makes one optimizer step of one micro step on random bases, replayed as a CUDA graph or not."""
    objective = NextToken(build_model(large_model(maximum_context=max(length, 1_000_002)), 1).to(DEVICE))
    if graph:
        objective.forward = GraphedForward(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    ids_BL = torch.randint(7, 11, (batch, length + 1), device=DEVICE)
    inputs_BL, targets_BL = ids_BL[:, :-1].contiguous(), ids_BL[:, 1:].contiguous()
    samples_B = torch.arange(batch, device=DEVICE)
    micro_batch, key = MicroBatch(inputs_BL, targets_BL, samples_B), DropoutKey(1, 1, samples_B)

    def step() -> None:
        how = ForwardPass(
            Layout.whole(length),
            dropout=key,
            filters=FilterCache(1),
            policy=POLICIES[policy],
            compute_dtype=precision,
        )
        loss, _ = objective(micro_batch, how)
        (loss / length).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed_step(length: int, batch: int, policy: str, precision: torch.dtype, graph: bool = False) -> str:
    """Seconds, tokens a second, and memory of a step, in words."""
    if CARD:
        torch.cuda.reset_peak_memory_stats()
    step = training_step(length, batch, policy, precision, graph)
    took = seconds(step, 5)
    began = time.perf_counter()
    step()
    host = time.perf_counter() - began
    memory = ""
    if CARD:
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
        memory = f", {allocated:.1f} GiB allocated, {reserved:.1f} reserved"
    rate = batch * length / took / 1e6
    return f"{took:.4f} s, {rate:.2f} million tokens/s, the host returns after {host:.4f} s{memory}"
