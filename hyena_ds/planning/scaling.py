"""The scaling study: a run's model on up to 1,024 GPUs and contexts of up to 2^26 tokens, on paper.

    model of plan.py, published figures --grids that fit--> strong, weak in the batch, weak in the context, contexts

Nothing here was measured on a GPU. `hyena-ds plan configs/large-1m.yaml --scaling` prints what bench/scaling.md holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import GIB, PUBLISHED, REACHED, Cluster, Device
from hyena_ds.cost.shape import StepShape, parameters
from hyena_ds.cost.step_time import PARTS
from hyena_ds.planning.plan import USABLE, Prediction, Search, best_grid, predict
from hyena_ds.plots import check_image, dress, line, panels
from hyena_ds.text import number

DEVICES = tuple(8 << exponent for exponent in range(8))
"""8 to 1,024, eight to a machine."""
CONTEXTS = tuple(1 << exponent for exponent in range(20, 27))
_OF_A_NODE = 8
_LENGTH = 1 << 20
_SEQUENCES = 128
"""Of a step, as published."""
_TOKENS_OF_A_DEVICE = 1 << 18
"""Where the context grows with the devices."""
_TOGETHER = 1 << 28
"""Tokens of a step on all devices: four sequences of the longest context, each over as many ranks as the width allows."""


@dataclass(frozen=True)
class Study:
    """Predictions by number of devices or context length; None where nothing fits."""

    name: str
    device: Device
    step: StepShape
    """One sequence on one device: the model, at the longest context, and its precision."""
    policies: list[Prediction]
    """One sequence on one device, under every activation policy, whether it fits or not."""
    strong: dict[int, Prediction]
    weak: dict[int, Prediction]
    weak_context: dict[int, Prediction]
    alone: dict[int, Prediction | None]
    """One sequence, by context length: on as many devices of one machine as it takes."""
    together: dict[int, Prediction | None]
    """A constant number of tokens on all devices, by context length."""


def study(config: RunConfig, device: Device) -> Study:
    """All of it, for the model and the precision of `config`."""
    model = replace(config.model, maximum_context=CONTEXTS[-1], extension=None, extended_from=None)
    search = Search()
    step = StepShape(model, CONTEXTS[-1], precision=config.precision, zero_stage=config.zero_stage)

    def best(length: int, sequences: int, ranks: int) -> Prediction | None:
        return best_grid(replace(step, context_length=length, accumulation=sequences), _cluster(ranks, device), search)

    def of_devices(length: Callable[[int], int], sequences: Callable[[int], int]) -> dict[int, Prediction]:
        found = {
            ranks: best(length(ranks), sequences(ranks), ranks) for ranks in DEVICES if length(ranks) <= CONTEXTS[-1]
        }
        return {ranks: one for ranks, one in found.items() if one is not None}

    return Study(
        config.name,
        device,
        step,
        [predict(replace(step, context_length=_LENGTH, policy=policy), _cluster(1, device)) for policy in KEPT_UNITS],
        of_devices(lambda ranks: _LENGTH, lambda ranks: _SEQUENCES),
        of_devices(lambda ranks: _LENGTH, lambda ranks: ranks),
        of_devices(lambda ranks: _TOKENS_OF_A_DEVICE * ranks, lambda ranks: 1),
        {length: _fewest(replace(step, context_length=length), device) for length in CONTEXTS},
        {length: best(length, _TOGETHER // length, DEVICES[-1]) for length in CONTEXTS},
    )


def _cluster(ranks: int, device: Device) -> Cluster:
    return Cluster(max(1, ranks // _OF_A_NODE), min(ranks, _OF_A_NODE), device)


def _fewest(one_sequence: StepShape, device: Device) -> Prediction | None:
    """The fewest devices, a power of two, that hold one sequence; of policies the fastest that does."""
    ranks = 1
    while ranks <= one_sequence.width:
        shapes = (one_sequence.on(ranks, 1, policy, ranks) for policy in KEPT_UNITS)
        found = [predict(shape, _cluster(ranks, device)) for shape in shapes if shape is not None]
        if fitting := [one for one in found if one.fits]:
            return min(fitting, key=lambda one: one.time.seconds)
        ranks *= 2
    return None


def study_lines(found: Study) -> list[str]:
    """The study in Markdown."""
    device, sheet, model = found.device, PUBLISHED[found.device.name], found.step.config
    lines = [
        "# Scaling, on paper",
        "",
        f"`hyena-ds plan configs/{found.name}.yaml --scaling --device {device.name} --plot bench/scaling.png` prints this page and draws the plot. Nothing in it was",
        "measured on a GPU: it is the model of `hyena-ds plan` with published figures. The same model with measured ceilings is held",
        "against measurement on a CPU in [RESULTS.md](RESULTS.md).",
        "",
        f"Model: {found.name}, width {model.width}, {model.layers} layers, {parameters(model):,} weights; {found.step.precision}, ZeRO stage {found.step.zero_stage}; a step of",
        f"{_SEQUENCES} sequences of 2^20 tokens ({_SEQUENCES * _LENGTH / 1e6:.0f} million) unless said. For every row the fastest grid, micro batch and policy that fit.",
        "",
        "## Assumptions",
        "",
        "| what | value | from |",
        "|---|---|---|",
        f"| device | {device.name}: {sheet.memory_gib:g} GiB, {sheet.bandwidth / 1e12:g} TB/s, {sheet.float32 / 1e12:g} TF/s float32, {sheet.bfloat16 / 1e12:g} bfloat16 dense | {sheet.source} |",
        f"| inside a machine, 8 devices | {sheet.link / 1e9:g} GB/s one way | the same |",
        f"| between machines | {sheet.network / 1e9:g} GB/s one way a device | the same |",
        f"| reached of these | products {REACHED.gemm:.0%}, memory {REACHED.memory:.0%}, links {REACHED.link:.0%} | assumed |",
        f"| memory that a plan fills | {USABLE:.0%}, {device.process / GIB:g} GiB of it CUDA's, NCCL's and cuFFT's; {device.slack:.0%} allocator slack | assumed |",
        "| elementwise work | every kernel of the code reads and writes device memory; nothing is fused | counted (`cost/traffic.py`) |",
        "| a transform of n points | log2(n) / 8 passes through memory, rounded up, and padding and product | assumed |",
        "| exchange | beside the transforms of other groups of channels; links inside and between machines at once | the code; assumed |",
        f"| latency of a collective | {device.rates.links.latency_inside * 1e6:g} us inside, {device.rates.links.latency_between * 1e6:g} us between machines; {device.rates.kernel * 1e6:g} us to start a kernel; {device.rates.step * 1e3:g} ms a step | assumed |",
        "| left out | validation, checkpoints, reading, congestion, slow devices, failures | |",
        "",
        "A kernel library that fuses the elementwise work would move every row: it is the largest part of a step.",
        "",
        "![scaling](scaling.png)",
        "",
        "## One sequence of 2^20 tokens on one device",
        "",
        *_policies(found.policies),
        "",
        "## Strong: one step of 128 sequences of 2^20 tokens on more devices",
        "",
        *_table(found.strong, "devices", strong=True),
        "",
        "## Weak in the batch: one sequence of 2^20 tokens a device",
        "",
        *_table(found.weak, "devices", strong=False),
        "",
        f"## Weak in the context: one sequence of {_TOKENS_OF_A_DEVICE:,} tokens a device, cut over all",
        "",
        *_table(found.weak_context, "devices", strong=False),
        "",
        "Transforms grow with log2(context), and from two machines on an exchange goes through the network: this is the price of",
        f"sequence parallelism beyond a machine. A sequence is cut over at most {model.width} ranks, the width.",
        "",
        "## One sequence on the fewest devices that hold it",
        "",
        *_contexts(found.alone),
        "",
        f"## {_power(_TOGETHER)} tokens a step on 1,024 devices, by context",
        "",
        *_contexts(found.together),
    ]
    return lines


def _grid(found: Prediction) -> str:
    shape = found.shape
    return (
        f"dp {shape.data_parallel} x sp {shape.sequence_parallel}, {shape.batch} x {shape.accumulation}, {shape.policy}"
    )


def _tokens_a_second(found: Prediction) -> float:
    return found.shape.sequences * found.shape.context_length / found.time.seconds


def _efficiency(found: dict[int, Prediction]) -> dict[int, float]:
    """Tokens a second and device, relative to the fewest devices."""
    each = {ranks: _tokens_a_second(one) / ranks for ranks, one in found.items()}
    first = next(iter(each.values()), 1.0)
    return {ranks: value / first for ranks, value in each.items()}


def _table(found: dict[int, Prediction], what: str, strong: bool) -> list[str]:
    efficiency = _efficiency(found)
    last = "speed-up" if strong else "context"
    rows = [
        f"| {what} | grid, micro batch x micro steps, policy | GiB | s a step | exchange s | tokens/s | efficiency | {last} |"
    ]
    rows.append("|" + "---|" * 8)
    if not found:
        return [*rows, "| | no grid fits | | | | | | |"]
    first = next(iter(found.values())).time.seconds
    for ranks, one in found.items():
        shown = number(first / one.time.seconds) if strong else _power(one.shape.context_length)
        rows.append(
            f"| {ranks:,} | {_grid(one)} | {number(one.memory.total / GIB)} | {number(one.time.seconds)} | "
            f"{number(one.time.parts['exchange'])} | {_tokens_a_second(one):,.0f} | {efficiency[ranks]:.0%} | {shown} |"
        )
    return rows


def _policies(found: list[Prediction]) -> list[str]:
    rows = ["| policy | GiB | s a step | " + " | ".join(f"{part} s" for part in PARTS) + " | tokens/s |"]
    rows.append("|" + "---|" * (4 + len(PARTS)))
    for one in found:
        parts = " | ".join(number(one.time.parts[part]) for part in PARTS)
        size = number(one.memory.total / GIB) + ("" if one.fits else ", does not fit")
        rows.append(
            f"| {one.shape.policy} | {size} | {number(one.time.seconds)} | {parts} | {_tokens_a_second(one):,.0f} |"
        )
    return rows


def _contexts(found: dict[int, Prediction | None]) -> list[str]:
    rows = [
        "| context | devices | grid, micro batch x micro steps, policy | GiB | s a step | FFT s | exchange s | tokens/s |"
    ]
    rows.append("|" + "---|" * 8)
    for length, one in found.items():
        if one is None:
            rows.append(f"| {_power(length)} | no grid fits | | | | | | |")
            continue
        parts = one.time.parts
        rows.append(
            f"| {_power(length)} | {one.shape.ranks:,} | {_grid(one)} | {number(one.memory.total / GIB)} | "
            f"{number(one.time.seconds)} | {number(parts['FFT'])} | {number(parts['exchange'])} | {_tokens_a_second(one):,.0f} |"
        )
    return rows


def _power(length: int) -> str:
    return f"2^{length.bit_length() - 1}"


def draw(found: Study, output: str) -> None:
    """Efficiency against devices, and seconds a step by part against context."""
    check_image("--plot", output)
    title = f"{found.name} on {found.device.name}, predicted from published figures; nothing measured"
    with panels(output, 2, title, (13, 5)) as (left, right):
        for number, (name, predictions) in enumerate(
            (
                ("strong: 128 sequences of 2^20", found.strong),
                ("weak: 2^18 tokens of one sequence a device", found.weak_context),
                ("weak: a sequence of 2^20 a device", found.weak),
            )
        ):
            efficiency = _efficiency(predictions)
            line(left, number, list(efficiency), [100 * value for value in efficiency.values()], name)
        dress(left, "Tokens a second and device, % of 8 devices", DEVICES, "devices", lambda ranks: f"{ranks:,.0f}")
        left.set_ylim(0, 108)
        left.legend(frameon=False, fontsize=9)
        _stack(right, {length: one for length, one in found.together.items() if one is not None})


def _stack(axes: Any, found: dict[int, Prediction]) -> None:
    colours = {"FFT": "#1f5fa8", "GEMM": "#2e8b57", "pointwise": "#9aa5b1", "filter": "#8a5fbf", "exchange": "#d1495b"}
    colours |= {"optimizer": "#c77d0a", "waiting": "#4a4a4a"}
    places = [math.log2(length) for length in found]
    below = [0.0] * len(found)
    for part, colour in colours.items():
        values = [one.time.parts[part] for one in found.values()]
        axes.bar(places, values, 0.7, bottom=below, color=colour, label=part)
        below = [a + b for a, b in zip(below, values, strict=True)]
    dress(axes, "Seconds a step of 2^28 tokens on 1,024 devices, by part", label="context, tokens")
    axes.set_xticks(places, [f"2^{place:.0f}" for place in places])
    axes.legend(frameon=False, fontsize=9, ncols=2)
