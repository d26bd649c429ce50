"""`hyena-ds bench precision`: what each choice of precision costs, on a trained model and held-out bases.

    weights, held-out windows --float32--> loss, logits, gradients
                              --one thing in bfloat16--> the same --> differences

Every choice rounds one thing to bfloat16 and leaves the rest in float32; `precision: bfloat16` of a run is the first one.
The others are not offered: the table says why. Rounding is simulated, where the model calls torch; backward uses the
rounded forward's values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hyena_ds.bench.measure import machine
from hyena_ds.bench.report import Row
from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import MicroBatch, Slice, make_micro_batch
from hyena_ds.data.stream import Sources, validation_samples
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.text import markdown_table

Rounding = Callable[[Tensor], Tensor]


def rounded(x: Tensor) -> Tensor:
    """Real numbers to bfloat16 and back; complex ones stay as they are."""
    return x.bfloat16().float() if x.is_floating_point() else x


def of_rounded_times(z_El: Tensor) -> Tensor:
    """The filter's features of time, its first row, in bfloat16."""
    t_1l = rounded(z_El[:1]).double()
    bands = (z_El.shape[0] - 1) // 2
    angles_bl = (
        torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64).unsqueeze(1).to(t_1l) * 2.0 * torch.pi * t_1l
    )
    return torch.cat((t_1l, angles_bl.cos(), -angles_bl.sin()))


class _Rounded(TorchDispatchMode):
    """Rounds what operations of torch take and return where these functions of the model call them."""

    def __init__(self, callers: str, operations: str, operands: Rounding = rounded, results: Rounding = rounded):
        super().__init__()
        self.callers, self.operations = callers.split(), operations.split()
        self.rounded: set[tuple[str, str]] = set()
        """Caller and operation of what was rounded so far."""
        self.operands, self.results = operands, results

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(operation).removeprefix("aten.")
        if name not in self.operations or (caller := self._caller()) not in self.callers:
            return operation(*args, **kwargs)
        self.rounded.add((caller, name))
        result = operation(*tree_map_only(Tensor, self.operands, args), **kwargs)
        rounded_result = tree_map_only(Tensor, self.results, result)
        return result.copy_(rounded_result) if "out" in kwargs else rounded_result

    def _caller(self) -> str:
        """Name of the nearest function outside torch."""
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch"):
            frame = frame.f_back
        return frame.f_code.co_name


_CHOICES = {
    "the residual": _Rounded("operator_forward mlp_forward", "add.out", operands=Tensor.float),
    "input and output of the long convolution": _Rounded("spectrum signal", "_fft_r2c.default _fft_c2r.default"),
    "the norms and their statistics": _Rounded("layer_norm", "native_layer_norm.default"),
    "the filter's MLP": _Rounded("evaluate_filter", "addmm.default mm.default"),
    "the filter's positions": _Rounded("positional_features", "cat.default", Tensor.double, of_rounded_times),
    "logits and loss": _Rounded("forward", "_log_softmax.default", operands=Tensor.bfloat16),
}


@dataclass(frozen=True)
class _Measured:
    """One choice on the same windows."""

    loss: float
    """Nats a base."""
    logits: Tensor
    gradients: dict[str, Tensor]


def measure_precision(model: HyenaDNA, micro_batch: MicroBatch) -> list[Row]:
    """A row a choice, float32 first."""
    exact = _measure(model, micro_batch, torch.float32)
    rows = [_row("float32 throughout", exact, exact)]
    found = _measure(model, micro_batch, torch.bfloat16)
    rows.append(_row("projections and MLP (`precision: bfloat16`)", found, exact))
    for name, rounding in _CHOICES.items():
        with rounding:
            rows.append(_row(name, _measure(model, micro_batch, torch.float32), exact))
    return rows


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Rows and machine, after printing the rows as a Markdown table."""
    config = load_yaml(options.config, RunConfig)
    model = load_model(options.weights)
    context = config.schedule[-1].context_length
    sources = Sources(config.data, "valid")
    samples = list(validation_samples(sources, context, options.windows))
    micro_batch = make_micro_batch(sources, context, list(range(len(samples))), [*samples], Slice(0, 0, context))
    rows = measure_precision(model, micro_batch)
    print(f"{options.weights}: {len(samples)} held-out windows of {context:,} bases")
    titles = ("in bfloat16", "loss, nats a base", "change", "logits", "gradients", "filters' gradients")
    forms = {"loss": ".6f", "loss_change": "+.1e", "logits": ".1e", "gradients": ".1e", "filter_gradients": ".1e"}
    cells = [(row["choice"], *(format(row[key], form) for key, form in forms.items())) for row in rows]
    print("\n".join(markdown_table(titles, cells)))
    return rows, machine()


def _measure(model: HyenaDNA, micro_batch: MicroBatch, dtype: torch.dtype) -> _Measured:
    layout = Layout.whole(micro_batch.token_ids_Bl.shape[1])
    model.zero_grad()
    call = ForwardPass(layout, compute_dtype=dtype)
    loss, scored = NextToken(model).loss(micro_batch.token_ids_Bl, micro_batch.targets, call)
    (loss / scored).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        logits = model(micro_batch.token_ids_Bl, ForwardPass(layout, compute_dtype=dtype))
    return _Measured(float(loss.detach() / scored), logits, gradients)


def _row(choice: str, found: _Measured, exact: _Measured) -> Row:
    """The distance of a choice from float32: of logits the largest over the largest, of gradients that of all as one vector."""

    def distance(names: list[str]) -> float:
        a, b = (torch.cat([m.gradients[name].flatten().double() for name in names]) for m in (found, exact))
        return float((a - b).norm() / b.norm())

    names = list(exact.gradients)
    return {
        "side": choice,
        "status": "measured",
        "choice": choice,
        "loss": found.loss,
        "loss_change": found.loss - exact.loss,
        "logits": float((found.logits - exact.logits).abs().max() / exact.logits.abs().max()),
        "gradients": distance(names),
        "filter_gradients": distance([name for name in names if ".implicit_filter." in name]),
    }
