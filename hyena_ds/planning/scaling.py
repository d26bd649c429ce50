"""The scaling study: a run's model on up to 1,024 GPUs and contexts of up to 2^26 tokens, on paper.

    model of forecast.py, published figures --grids that fit--> strong, weak in the batch, weak in the context, contexts

No row was measured: of what kinds its numbers are, each table says. `hyena-ds plan configs/large-1m.yaml --scaling` prints what
bench/scaling.md holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import GIB, Cluster, Device
from hyena_ds.cost.shape import StepShape, kernels_of_run, parameters
from hyena_ds.cost.step_time import PARTS
from hyena_ds.planning.assumptions import assumptions
from hyena_ds.planning.forecast import Prediction, Search, best_grid, predict
from hyena_ds.planning.large_cluster import DEVICES as LARGE
from hyena_ds.planning.large_cluster import large_cluster, lasting
from hyena_ds.plots import check_image, dress, line, panels
from hyena_ds.text import markdown_table, number

DEVICES = tuple(8 << exponent for exponent in range(8))
"""8 to 1,024, eight to a machine."""
CONTEXTS = tuple(1 << exponent for exponent in range(20, 27))
_GRID = "grid, micro batch x micro steps, policy"
_OF_DEVICES = f"devices | {_GRID} | GiB | s a step | exchange s | tokens/s | efficiency"
_COUNTED_ALONE = """Kinds: GiB are counted tensors, with an assumed context and slack. Seconds, and what follows of them, are counted work at the rates of the
data sheet, of which the shares above are reached."""
_COUNTED_TOGETHER = f"{_COUNTED_ALONE} Exchanges are counted bytes; their latency and the share of links are assumed."
_OF_A_NODE = 8
_LENGTH = 1 << 20
_SEQUENCES = 128
"""Sequences of a step, as published."""
_TOKENS_OF_A_DEVICE = 1 << 18
"""Where the context grows with the devices."""
_TOGETHER = 1 << 28
"""Tokens of a step on all devices: four sequences of the longest context, each over as many ranks as the width allows."""


@dataclass(frozen=True)
class Study:
    """Predictions by number of devices or context length; None where nothing fits."""

    config: RunConfig
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
    step = replace(step, kernels=kernels_of_run(config, device.on_cpu))

    def best(length: int, sequences: int, ranks: int) -> Prediction | None:
        return best_grid(replace(step, context_length=length, accumulation=sequences), _cluster(ranks, device), search)

    def of_devices(length: Callable[[int], int], sequences: Callable[[int], int]) -> dict[int, Prediction]:
        found = {
            ranks: best(length(ranks), sequences(ranks), ranks) for ranks in DEVICES if length(ranks) <= CONTEXTS[-1]
        }
        return {ranks: one for ranks, one in found.items() if one is not None}

    return Study(
        config,
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


def study_page(found: Study) -> str:
    """The study in Markdown."""
    page = (Path(__file__).parent / "scaling.template").read_text(encoding="utf-8")
    return page.format(
        found=found,
        device=found.device,
        model=found.step.config,
        weights=parameters(found.step.config),
        sequences=_SEQUENCES,
        millions=_SEQUENCES * _LENGTH / 1e6,
        assumptions=assumptions(found.device, found.step),
        counted_alone=_COUNTED_ALONE,
        counted_together=_COUNTED_TOGETHER,
        tokens_of_a_device=_TOKENS_OF_A_DEVICE,
        together=_power(_TOGETHER),
        devices=LARGE,
        machines=LARGE // _OF_A_NODE,
        policies=_policies(found.policies),
        strong_table=_strong(found),
        weak_table=_table(found.weak),
        weak_context_table=_table(found.weak_context),
        alone_table=_contexts(found.alone),
        together_table=_contexts(found.together),
        large_row=_grid(found.strong[LARGE]) if LARGE in found.strong else "no grid fits",
        **large_cluster(found.config, found.strong.get(LARGE), _cluster(LARGE, found.device)),
    )


def _grid(found: Prediction) -> str:
    shape = found.shape
    return (
        f"dp {shape.data_parallel} x sp {shape.sequence_parallel}, {shape.batch} x {shape.accumulation}, {shape.policy}"
    )


def _tokens_a_second(found: Prediction) -> float:
    return found.shape.tokens / found.time.seconds


def _efficiency(found: dict[int, Prediction]) -> dict[int, float]:
    """Tokens a second and device, relative to the fewest devices."""
    each = {ranks: _tokens_a_second(one) / ranks for ranks, one in found.items()}
    first = next(iter(each.values()), 1.0)
    return {ranks: value / first for ranks, value in each.items()}


def _strong(found: Study) -> str:
    first = next(iter(found.strong.values()), None)
    rows = []
    for (ranks, one), row in zip(found.strong.items(), _rows(found.strong), strict=True):
        assert first is not None
        goodput = lasting(found.config, one, _cluster(ranks, found.device)).goodput()
        rows.append((*row, number(first.time.seconds / one.time.seconds), f"{goodput:.1%}"))
    return _lines(f"{_OF_DEVICES} | speed-up | of this, with saves and failures", rows or [_none(9)])


def _table(found: dict[int, Prediction]) -> str:
    contexts = (_power(one.shape.context_length) for one in found.values())
    rows = [(*row, context) for row, context in zip(_rows(found), contexts, strict=True)]
    return _lines(f"{_OF_DEVICES} | context", rows or [_none(8)])


def _rows(found: dict[int, Prediction]) -> list[tuple[str, ...]]:
    """The columns of `_OF_DEVICES`."""
    efficiency = _efficiency(found)
    return [
        (f"{ranks:,}", _grid(one), *_size_and_seconds(one, "exchange"), f"{efficiency[ranks]:.0%}")
        for ranks, one in found.items()
    ]


def _none(columns: int) -> tuple[str, ...]:
    return ("", "no grid fits", *[""] * (columns - 2))


def _policies(found: list[Prediction]) -> str:
    titles = f"policy | GiB | s a step | {' | '.join(f'{part} s' for part in PARTS)} | tokens/s"
    rows = []
    for one in found:
        size, *others = _size_and_seconds(one, *PARTS)
        rows.append((one.shape.policy, size + ("" if one.fits else ", does not fit"), *others))
    return _lines(titles, rows)


def _contexts(found: dict[int, Prediction | None]) -> str:
    rows = []
    for length, one in found.items():
        if one is None:
            rows.append((_power(length), "no grid fits", *[""] * 6))
        else:
            measures = _size_and_seconds(one, "FFT", "exchange")
            rows.append((_power(length), f"{one.shape.ranks:,}", _grid(one), *measures))
    return _lines(f"context | devices | {_GRID} | GiB | s a step | FFT s | exchange s | tokens/s", rows)


def _size_and_seconds(one: Prediction, *parts: str) -> tuple[str, ...]:
    """Memory, seconds of a step and of some of its parts, and tokens a second."""
    seconds = (one.time.seconds, *(one.time.parts[part] for part in parts))
    return number(one.memory.total / GIB), *map(number, seconds), f"{_tokens_a_second(one):,.0f}"


def _lines(titles: str, rows: list[tuple[str, ...]]) -> str:
    return "\n".join(markdown_table(titles.split(" | "), rows))


def _power(length: int) -> str:
    return f"2^{length.bit_length() - 1}"


def draw(found: Study, output: str) -> None:
    """Efficiency against devices, and seconds a step by part against context."""
    check_image("--plot", output)
    title = f"{found.config.name} on {found.device.name}, predicted from data sheets and counts; no row was measured"
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
    axes.set_ylim(0, 1.08 * max(below, default=1.0))
    dress(axes, "Seconds a step of 2^28 tokens on 1,024 devices, by part", label="context, tokens")
    axes.set_xticks(places, [f"2^{place:.0f}" for place in places])
    axes.legend(frameon=False, fontsize=9, ncols=2)
