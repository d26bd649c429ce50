"""The engine's state in a form that no grid, world size or ZeRO stage shapes: named float32 parameters and moments.

    engine (any ZeRO stage) --fragments: what this rank owns, nothing exchanged--> (name, offset, slices)
    model with loaded parameters --build_engine--> engine --load_moments--> engine as it was (each rank its own part of them)

Parameters are loaded into the model before the engine is built, so that its float32 copies are made from them. What ZeRO
has AdamW update is not the parameters but flat tensors that hold this rank's pieces of many; `_places` says where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

PARAMETER = "parameter"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A piece of one parameter (flattened) and of its moments. The slices are views: an update changes them."""

    name: str
    offset: int
    slices: dict[str, Tensor]
    """By kind: parameter, exp_avg, exp_avg_sq."""


@dataclass(frozen=True)
class _Place:
    """Elements `offset` to `offset + count` of a parameter are elements `start` to `start + count` of `updated`."""

    name: str
    offset: int
    updated: Tensor
    """What AdamW updates, and keeps its state of."""
    start: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.view(-1).narrow(0, self.start, self.count)


def fragments(engine: deepspeed.DeepSpeedEngine) -> Iterator[Fragment]:
    """What this rank saves of what is trained. Together the ranks' fragments have each element once. Exchanges nothing."""
    adam = _adam(engine)
    for number, place in enumerate(_places(engine)):
        if engine.zero_optimization_stage() == 0 and number % dist.get_world_size() != dist.get_rank():
            continue  # every rank has everything
        slices = {PARAMETER: place.of(place.updated.detach())}
        state = adam.state.get(place.updated, {})
        for moment in MOMENTS:  # there are none before the first update
            slices[moment] = place.of(state[moment]) if moment in state else torch.zeros_like(slices[PARAMETER])
        yield Fragment(place.name, place.offset, slices)


def gathers(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether no rank has whole parameters, so that reading one is collective: under ZeRO-3."""
    return bool(engine.zero_optimization_stage() == 3)


def frozen_parameters(engine: deepspeed.DeepSpeedEngine, copy: bool) -> Iterator[tuple[str, Tensor]]:
    """The parameters that are not trained, of which each rank saves its share whole: they have no moments.

    Copied to main memory on request. Collective under ZeRO-3: gathered and copied one at a time.
    """
    gathered = gathers(engine)
    frozen = [(name, each) for name, each in engine.module.named_parameters() if not each.requires_grad]
    for number, (name, parameter) in enumerate(frozen):
        own = number % dist.get_world_size() == dist.get_rank()
        if own or gathered:
            with deepspeed.zero.GatheredParameters([parameter], enabled=gathered):
                value = parameter.detach()
                if own:
                    yield name, value.to("cpu", copy=True) if copy or gathered else value


def updates_done(engine: deepspeed.DeepSpeedEngine) -> int:
    """Updates that AdamW counts; skipped steps are none."""
    return max((int(state["step"]) for state in _adam(engine).state.values() if "step" in state), default=0)


def load_moments(
    engine: deepspeed.DeepSpeedEngine, read: Callable[[str, str], Iterable[tuple[int, Tensor]]], updates: int
) -> None:
    """Put the moments after `updates` updates into a freshly built engine.

    `read(kind, name)` gives a flat tensor in pieces, (first element, elements). It is called in the same order on every rank,
    also for parameters of which a rank owns nothing: it may be collective.
    """
    adam = _adam(engine)
    if updates == 0:
        return
    places = {place.name: place for place in _places(engine)}
    for place in places.values():  # what AdamW makes in its first step
        if place.updated not in adam.state:
            zeros = {moment: torch.zeros_like(place.updated, requires_grad=False) for moment in MOMENTS}
            adam.state[place.updated] = {"step": torch.tensor(float(updates)), **zeros}
    for name, parameter in engine.module.named_parameters():
        for moment in MOMENTS if parameter.requires_grad else ():
            for begin, elements in read(moment, name):
                if name in places:
                    place = places[name]
                    _copy_overlap(place.of(adam.state[place.updated][moment]), place.offset, elements, begin)


def _copy_overlap(to: Tensor, to_begin: int, source: Tensor, source_begin: int) -> None:
    """Copy what two runs of a flat tensor, which begin at these elements of it, have in common."""
    first = max(to_begin, source_begin)
    last = min(to_begin + len(to), source_begin + len(source))
    if first < last:
        to[first - to_begin : last - to_begin].copy_(source[first - source_begin : last - source_begin])


def _adam(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _places(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Place]:
    """Where this rank's pieces of the parameters are, in the same order on every rank."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    trained = ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)
    for name, parameter in trained:
        if stage == 0:
            yield _Place(name, 0, parameter, 0, parameter.numel())
        elif stage == 3:
            group, start, size = zero.grad_position[zero.get_param_id(parameter)]
            offset = size * dist.get_rank()
            count = min(size, parameter.ds_numel - offset)  # the last pieces are padded
            if count > 0:
                yield _Place(name, offset, zero.fp32_partitioned_groups_flat[group], start, count)
        elif parameter._hp_mapping is not None:
            here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            flat = zero.single_partition_of_fp32_groups[parameter._hp_mapping.param_group_index]
            yield _Place(name, here.start, flat, there.start, here.numel)
