"""The engine's state in a form that no grid, world size or ZeRO stage shapes: named float32 parameters and moments.

    engine (any ZeRO stage) --gather one parameter at a time--> {name: (parameter, exp_avg, exp_avg_sq)}
    model with loaded parameters --build_engine--> engine --load_moments--> engine as it was

Parameters are loaded into the model before the engine is built, so that its float32 copies are made from them.
"""

from __future__ import annotations

from collections.abc import Iterator

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_state(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, {"parameter", "exp_avg", "exp_avg_sq"}), whole and float32 on every rank, parameter by parameter.

    Collective: every rank must draw every item.
    """
    if not _adam(engine).state:  # no update yet: the steps so far were skipped
        _create_optimizer_state(engine, 0)
    _link_optimizer_state(engine)
    for name, parameter in engine.module.model.named_parameters():
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[parameter]
            yield name, {"parameter": parameter.data, **{moment: state[moment] for moment in MOMENTS}}
        else:
            tensors = {"parameter": safe_get_full_fp32_param(parameter)}
            for moment in MOMENTS:
                tensors[moment] = safe_get_full_optimizer_state(parameter, moment)
            yield name, {key: tensor.detach().view(_whole_shape(parameter)) for key, tensor in tensors.items()}


def load_moments(engine: deepspeed.DeepSpeedEngine, moments: dict[str, dict[str, Tensor]], steps: int) -> None:
    """Put `moments` ({name: {"exp_avg", "exp_avg_sq"}}) after `steps` updates into a freshly built engine."""
    stage = engine.zero_optimization_stage()
    _create_optimizer_state(engine, steps)
    for name, parameter in engine.module.model.named_parameters():
        for moment in MOMENTS:
            value = moments[name][moment].to(engine.device)
            if stage == 0:
                engine.optimizer.state[parameter][moment].copy_(value)
            elif stage == 3:
                safe_set_local_optimizer_state(parameter, _local_partition(parameter, value), moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)


def _create_optimizer_state(engine: deepspeed.DeepSpeedEngine, steps: int) -> None:
    """What AdamW makes in its first step. Under ZeRO it works on flat partitions, and none exists before that step."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        updated = list(engine.module.parameters())
    elif stage == 3:
        updated = engine.optimizer.fp32_partitioned_groups_flat
    else:
        updated = engine.optimizer.single_partition_of_fp32_groups
    for tensor in updated:
        zeros = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
        _adam(engine).state[tensor] = {"step": torch.tensor(float(steps)), **zeros}
    _link_optimizer_state(engine)


def _adam(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _link_optimizer_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let ZeRO 1 and 2 find a parameter's moments in the flat state of every parameter group.

    DeepSpeed 0.19.8 links once, after the first group's first update, when the other groups have no state yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _local_partition(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's piece of a whole tensor under ZeRO-3, padded as DeepSpeed pads it."""
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    flat = torch.nn.functional.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
    return flat.narrow(0, size * torch.distributed.get_rank(), size).clone()


def _whole_shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
