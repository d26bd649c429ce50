"""A DeepSpeed engine around the objective: ZeRO, AdamW in HyenaDNA's parameter groups, clipping.

DeepSpeed sees one flat data-parallel world and no schedule: the grid, the accumulation boundary, the scale of the loss
and the learning rate are ours (training/step.py). So is the precision: parameters and gradients are float32 for the
engine, and the blocks round what they multiply (model/forward_pass.py).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import deepspeed
import torch

from hyena_ds.config.schema import OptimizerConfig, RunConfig
from hyena_ds.parallel.devices import bound_exchanges
from hyena_ds.runtime.watchdog import longest_exchange
from hyena_ds.tasks.task import Objective
from hyena_ds.training.compiler import leave_out_compiler
from hyena_ds.training.graphs import GraphedForward

_BUCKET_ELEMENTS = 1 << 24


def build_engine(
    config: RunConfig, objective: Objective, ranks: int, optimizer: torch.optim.Optimizer | None = None
) -> deepspeed.DeepSpeedEngine:
    """Wrap an objective, with the weights it has now, for training. `optimizer` replaces AdamW, for tests. Collective."""
    if not config.deepspeed_log:
        quiet()
    if config.cuda_graphs:
        objective.forward = GraphedForward(objective)  # type: ignore[method-assign]
    leave_out_compiler()
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=optimizer or adamw(config.optimizer, objective),
        config=deepspeed_config(config, ranks),
    )
    timeout = longest_exchange(config.watchdog)
    if timeout is not None:
        bound_exchanges(timeout)  # in groups of DeepSpeed's own too
    return engine


def adamw(config: OptimizerConfig, objective: Objective) -> torch.optim.AdamW:
    """AdamW on the objective's parameter groups."""
    groups, (first, second, *_) = objective.groups(config.weight_decay), config.betas
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(first, second), eps=config.epsilon)


def deepspeed_config(config: RunConfig, ranks: int) -> dict[str, Any]:
    """What DeepSpeed is told. Its own batch arithmetic is unused: one sequence a rank, no accumulation.

    What is offloaded is updated by the same AdamW as without, in place of DeepSpeed's, which a compiler has to build.
    """
    places = {"offload_optimizer": config.offload_optimizer, "offload_param": config.offload_param}
    offloaded = {name: {"device": device} for name, device in places.items() if device is not None}
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            # The default buckets take 2 GiB a rank for a model of a few million parameters.
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
            **offloaded,
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def quiet() -> None:
    """Silence DeepSpeed's log and the deprecation warnings of the torch calls it makes."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
