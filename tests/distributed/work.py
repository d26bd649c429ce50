"""What the distributed tests train on, and the plain single-process training they compare with.

B sequences of the global batch, L context length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, OptimizerConfig, RunConfig, SourceConfig
from hyena_ds.data.loader import MicroBatch, StepBatch
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.ops.cross_entropy import IGNORED
from hyena_ds.parallel.topology import Topology
from tests.model.plain import plain_logits

TOLERANCE = 1e-5
"""Largest error allowed, relative to the largest element (max norm)."""
CONTEXT = 32
SEED = 7
_LIVELY = 0.1


@dataclass(frozen=True)
class Grid:
    """Data parallel x sequence parallel."""

    dp: int
    sp: int

    @property
    def topology(self) -> Topology:
        return Topology(self.dp, self.sp)

    @property
    def ranks(self) -> int:
        return self.dp * self.sp

    def __str__(self) -> str:
        return f"{self.dp}x{self.sp}"


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """One optimizer step over all ranks, and in how many micro steps it is done."""

    token_ids_BL: Tensor
    targets_BL: Tensor
    accumulation: int

    @property
    def scored(self) -> int:
        return int((self.targets_BL != IGNORED).sum())

    def numbers(self, grid: Grid, row: int, micro_step: int) -> list[int]:
        """Sequences of one micro batch of one data-parallel row."""
        size = self.token_ids_BL.shape[0] // (self.accumulation * grid.dp)
        first = (micro_step * grid.dp + row) * size
        return list(range(first, first + size))

    def on_rank(self, step: int, grid: Grid, rank: int) -> StepBatch:
        """The rows and the slice of one rank."""
        local = self.token_ids_BL.shape[1] // grid.sp
        row, offset = grid.topology.row(rank), grid.topology.index(rank) * local
        micro_batches = []
        for micro_step in range(self.accumulation):
            chosen = torch.tensor(self.numbers(grid, row, micro_step))
            ids, targets = (t[chosen, offset : offset + local].clone() for t in (self.token_ids_BL, self.targets_BL))
            micro_batches.append(MicroBatch(ids, targets, chosen))
        return StepBatch(step, micro_batches, self.scored)


def make_batch(seed: int, sequences: int, accumulation: int, context: int = CONTEXT) -> GlobalBatch:
    """Random bases; every sequence has another share of ignored targets, from 5 to 75 percent."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, 12, (sequences, context + 1), generator=generator)
    targets = ids[:, 1:].clone()
    share = torch.linspace(0.05, 0.75, sequences).unsqueeze(1)
    targets[torch.rand(targets.shape, generator=generator) < share] = IGNORED
    return GlobalBatch(ids[:, :-1].clone(), targets, accumulation)


def uneven_batches(steps: int, grid: Grid, sequences: int = 8, accumulation: int = 2) -> list[GlobalBatch]:
    """Besides the random ones: the last slice of row 0's first micro batch is wholly ignored, in every step."""
    batches = [make_batch(100 + step, sequences, accumulation) for step in range(steps)]
    start = (grid.sp - 1) * CONTEXT // grid.sp
    for batch in batches:
        if grid.ranks > 1:
            batch.targets_BL[batch.numbers(grid, 0, 0), start:] = IGNORED
    return batches


def run_config(grid: Grid, **changes: Any) -> RunConfig:
    """A tiny run; `changes` are fields of RunConfig, ModelConfig or OptimizerConfig."""
    shape: dict[str, Any] = {
        "width": 16,
        "layers": 2,
        "maximum_context": CONTEXT,
        "filter_width": 16,
        "embedding_dropout": 0.0,
    }
    optimizer: dict[str, Any] = {"gradient_clipping": 0.0}
    for fields, owner in ((shape, ModelConfig), (optimizer, OptimizerConfig)):
        for name in owner.__dataclass_fields__:
            if name in changes:
                fields[name] = changes.pop(name)
    stage = StageConfig(shape["maximum_context"], 5, 1, global_batch=8, sequence_parallel=grid.sp)
    return RunConfig(
        name="distributed",
        model=ModelConfig(**shape),
        data=DataConfig(sources=(SourceConfig("unused"),)),
        stages=(stage,),
        optimizer=OptimizerConfig(**optimizer),
        **changes,
    )


def lively_model(config: ModelConfig) -> HyenaDNA:
    """Weights large enough that every part of the model shows in loss and gradients; equal wherever it is called."""
    model = build_model(config, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(_LIVELY * torch.randn(parameter.shape, generator=generator))
    return model


@dataclass
class Trained:
    """What a training leaves; parameters and gradients by name."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    first_gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """As the next forward would see them."""
    masters: dict[str, Tensor] = field(default_factory=dict)
    """The optimizer's float32 copies, where the ZeRO stage has them."""


def reference(
    config: RunConfig, batches: list[GlobalBatch], rate: float, adamw: bool = False, clip: float = 0.0
) -> Trained:
    """One process, no engine, no micro steps, the plain model in float64: the mean loss over scored targets of each whole
    global batch."""
    model = lively_model(config.model).double()
    optimizer: torch.optim.Optimizer
    if adamw:
        decayed = [p for name, p in model.named_parameters() if "implicit_filter" not in name]
        free = [p for name, p in model.named_parameters() if "implicit_filter" in name]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    trained = Trained()
    for batch in batches:
        logits_BLV = plain_logits(dict(model.named_parameters()), config.model, batch.token_ids_BL)
        targets = batch.targets_BL.flatten()
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum") / batch.scored
        optimizer.zero_grad()
        loss.backward()
        if not trained.losses:
            trained.first_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.cat([g.flatten() for g in gradients]).double().norm().item()
        if clip:
            for gradient in gradients:
                gradient.mul_(min(1.0, clip / norm))
        optimizer.step()
        trained.losses.append(float(loss.detach()))
        trained.norms.append(norm)
    trained.parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    return trained


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|, in float64; infinite for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30))


def worst_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error over named tensors, and whose it is."""
    assert set(found) == set(wanted)
    return max((relative_error(found[name], wanted[name]), name) for name in wanted)


def series_error(found: list[float], wanted: list[float]) -> float:
    """The largest relative error over two series of numbers."""
    assert len(found) == len(wanted)
    return max(abs(f - w) / abs(w) for f, w in zip(found, wanted, strict=True))
