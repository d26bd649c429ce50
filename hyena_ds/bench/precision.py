"""`hyena-ds bench precision`: what each choice of precision costs, on a trained model and held-out bases.

    weights, held-out windows --float32--> loss, logits, gradients
                              --one thing in bfloat16--> the same --> differences

Every choice rounds one thing to bfloat16 and leaves the rest in float32; `precision: bfloat16` of a run is the first one.
The others are not offered: the table says why. Rounding is simulated by replacing one function of the model while the
choice is measured; backward uses the rounded forward's values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.bench.measure import machine
from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import MicroBatch, Slice, make_micro_batch
from hyena_ds.data.stream import Sources, validation_samples
from hyena_ds.model import block, filter, mlp, operator
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.filter import FilterShape, FilterWeights
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops import cross_entropy
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.ops.layer_norm import Normed
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken


@dataclass(frozen=True)
class Measured:
    """One choice on the same windows."""

    loss: float
    """Nats a base."""
    logits: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A choice's distance from float32."""

    choice: str
    loss: float
    loss_change: float
    logits: float
    """Largest difference over the largest logit."""
    gradients: float
    """Length of the difference over the length, all parameters as one vector."""
    filter_gradients: float
    """The same over the implicit filters' parameters."""


def rounded(x: Tensor) -> Tensor:
    """To bfloat16 and back."""
    return x.bfloat16().float()


def measure_precision(model: HyenaDNA, micro_batch: MicroBatch) -> list[Row]:
    """A row a choice, float32 first."""
    exact = _measure(model, micro_batch, torch.float32)
    rows = [_row("float32 throughout", exact, exact)]
    found = _measure(model, micro_batch, torch.bfloat16)
    rows.append(_row("projections and MLP (`precision: bfloat16`)", found, exact))
    for name, change in _CHOICES.items():
        with change():
            rows.append(_row(name, _measure(model, micro_batch, torch.float32), exact))
    return rows


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and machine, after printing the rows as a Markdown table."""
    config = load_yaml(options.config, RunConfig)
    model = load_model(options.weights)
    context = config.schedule[-1].context_length
    sources = Sources(config.data, "valid")
    samples = list(validation_samples(sources, context, options.windows))
    micro_batch = make_micro_batch(sources, context, list(range(len(samples))), [*samples], Slice(0, 0, context))
    rows = measure_precision(model, micro_batch)
    print(f"{options.weights}: {len(samples)} held-out windows of {context:,} bases")
    print("| in bfloat16 | loss, nats a base | change | logits | gradients | filters' gradients |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.choice} | {r.loss:.6f} | {r.loss_change:+.1e} | {r.logits:.1e} | {r.gradients:.1e} "
            f"| {r.filter_gradients:.1e} |"
        )
    return [{"side": row.choice, "status": "measured", **vars(row)} for row in rows], machine()


def _measure(model: HyenaDNA, micro_batch: MicroBatch, dtype: torch.dtype) -> Measured:
    layout = Layout.whole(micro_batch.token_ids_Bl.shape[1])
    model.zero_grad()
    run = ForwardPass(layout, compute_dtype=dtype)
    loss, scored = NextToken(model).loss(micro_batch.token_ids_Bl, micro_batch.targets, run)
    (loss / scored).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        logits = model(micro_batch.token_ids_Bl, ForwardPass(layout, compute_dtype=dtype))
    return Measured(float(loss.detach() / scored), logits, gradients)


def _row(choice: str, found: Measured, exact: Measured) -> Row:
    def distance(names: list[str]) -> float:
        a, b = (torch.cat([m.gradients[name].flatten().double() for name in names]) for m in (found, exact))
        return float((a - b).norm() / b.norm())

    names = list(exact.gradients)
    return Row(
        choice,
        found.loss,
        found.loss - exact.loss,
        float((found.logits - exact.logits).abs().max() / exact.logits.abs().max()),
        distance(names),
        distance([name for name in names if ".implicit_filter." in name]),
    )


def _residual() -> Any:
    """The residual stream after every half-block."""

    def after(function: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
        def wrapped(*arguments: Any) -> tuple[Tensor, Any]:
            out, kept = function(*arguments)
            return rounded(out), kept

        return wrapped

    return _replaced(
        (block, "operator_forward", after(operator.operator_forward)), (block, "mlp_forward", after(mlp.mlp_forward))
    )


def _convolution() -> Any:
    """Input, filter and output of the long convolution."""

    def forward(u: Tensor, k: Tensor) -> Tensor:
        return rounded(FFT.forward(rounded(u), rounded(k)))

    def backward(dy: Tensor, u: Tensor, k: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        du, dk, y = FFT.backward(rounded(dy), rounded(u), rounded(k), again)
        return rounded(du), rounded(dk), y

    convolution = Convolution("rounded", forward, backward)
    original = ForwardPass.__init__

    def init(self: ForwardPass, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **{**named, "convolution": convolution})

    return _replaced((ForwardPass, "__init__", init))


def _norms() -> Any:
    """Mean, variance and output of the layer norms."""

    def layer_norm(r: Tensor, weight: Tensor, bias: Tensor) -> Normed:
        x, mean, rstd = torch.native_layer_norm(r.bfloat16(), r.shape[-1:], weight.bfloat16(), bias.bfloat16(), 1e-5)
        return Normed(x.float(), rounded(mean), rounded(rstd))

    return _replaced(*((module, "layer_norm", layer_norm) for module in (operator, mlp, cross_entropy)))


def _positions() -> Any:
    """The filter's time axis."""
    original = filter.positional_features

    def features(shape: FilterShape, first: int, length: int, device: torch.device) -> Tensor:
        t_1l = rounded(original(shape, first, length, device)[:1]).double()
        bands = (shape.features - 1) // 2
        f_b1 = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=torch.float64).unsqueeze(1)
        angles = f_b1 * 2.0 * torch.pi * t_1l
        return torch.cat((t_1l, angles.cos(), -angles.sin())).float()

    return _replaced((filter, "positional_features", features))


def _filter_mlp() -> Any:
    """The products of the filter's MLP."""

    def evaluate(shape: FilterShape, weights: FilterWeights, offset: int, length: int) -> Tensor:
        exact = _EVALUATE(shape, weights, offset, length)
        window = exact / _products(shape, weights, offset, length, lambda x: x)
        return _products(shape, weights, offset, length, rounded) * window

    return _replaced((block, "evaluate_filter", evaluate))


_EVALUATE = filter.evaluate_filter


def _products(
    shape: FilterShape, weights: FilterWeights, offset: int, length: int, precision: Callable[[Tensor], Tensor]
) -> Tensor:
    """The filter before its window (D, l), with operands and results of every product in `precision`."""
    h = filter.positional_features(shape, offset, length, weights.frequency.device)
    for weight, bias in (
        (weights.input_weight, weights.input_bias),
        (weights.hidden1_weight, weights.hidden1_bias),
        (weights.hidden2_weight, weights.hidden2_bias),
    ):
        a = torch.addmm(precision(bias).unsqueeze(1), precision(weight), precision(h))
        h = torch.sin(weights.frequency.view(-1, 1) * precision(a))
    return precision(torch.mm(precision(weights.output_weight), precision(h)))


def _loss() -> Any:
    """Logits and log-probabilities."""

    def log_softmax(logits: Tensor, dim: int) -> Tensor:
        return F.log_softmax(logits.bfloat16(), dim=dim).float()

    class Functions:
        nll_loss = staticmethod(F.nll_loss)

    Functions.log_softmax = staticmethod(log_softmax)  # type: ignore[attr-defined]
    return _replaced((cross_entropy, "F", Functions))


_CHOICES: dict[str, Callable[[], Any]] = {
    "the residual": _residual,
    "in- and output of the long convolution": _convolution,
    "the norms and their statistics": _norms,
    "the filter's MLP": _filter_mlp,
    "the filter's positions": _positions,
    "logits and loss": _loss,
}


@contextmanager
def _replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    patches = [patch.object(owner, name, value) for owner, name, value in changes]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
