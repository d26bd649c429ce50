"""A sweep by context length: loss, perplexity and tokens/s of its complete runs, one line for every other setting.

Over the first two panels the Markov baselines say what counting gives on the same held-out windows. plots.py draws.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError
from hyena_ds.files.rows import read_summary
from hyena_ds.plots import GREY, INK, dress, line, panels
from hyena_ds.sweeps.plan import Sweep
from hyena_ds.sweeps.results import COMPLETE, Row

PLOT = "contexts.png"
_OF_LOSS = {"loss": float, "perplexity": math.exp}
"""Panels with baselines, and what they show of a loss."""
_PANELS = (
    ("loss", "Validation loss, nats a base"),
    ("perplexity", "Validation perplexity"),
    ("tokens_per_second", "Training, tokens a second"),
)


def plot(sweep: Sweep, rows: list[Row]) -> Path:
    """Write the image into the sweep's directory. Raises UserError where there is nothing to draw, or no matplotlib."""
    lines = lines_of(sweep, rows)
    if not any(len({point["context_length"] for point in points}) > 1 for points in lines.values()):
        raise UserError("found fewer than two context lengths among the complete runs")
    lengths = sorted({point["context_length"] for points in lines.values() for point in points})
    file = sweep.directory / PLOT
    with panels(file, len(_PANELS), _title(sweep, rows), (13.5, 4.2)) as all_axes:
        for axes, (key, title) in zip(all_axes, _PANELS, strict=True):
            for number, (label, points) in enumerate(lines.items()):
                line(axes, number, [point["context_length"] for point in points], [p[key] for p in points], label)
            if key in _OF_LOSS:
                _draw_baselines(axes, key, _baselines(sweep))
            dress(axes, title, lengths)
            axes.margins(y=0.15)
            if key == "tokens_per_second":
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if len(lines) > 1:
            all_axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return file


def lines_of(sweep: Sweep, rows: list[Row]) -> dict[str, list[Row]]:
    """Points of complete runs by context length, for each combination of settings other than those of the context."""
    others = [keys for keys in sweep.config.dimensions if not any(key.endswith("context_length") for key in keys)]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == COMPLETE:
            label = ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for keys in others for key in keys)
            lines.setdefault(label, []).append(row)
    return {label: sorted(points, key=lambda row: row["context_length"]) for label, points in lines.items()}


def _title(sweep: Sweep, rows: list[Row]) -> str:
    models = [f"HyenaDNA of width {run.config.model.width}, {run.config.model.layers} layers; " for run in sweep.runs]
    model = models[0] if len({*models}) == 1 else ""
    tokens = {row["tokens"] for row in rows if row["status"] == COMPLETE}
    each = f"{tokens.pop():,} tokens a run" if len(tokens) == 1 else "tokens differ between runs"
    return f"{sweep.config.name}: {model}{each}"


def _baselines(sweep: Sweep) -> dict[str, list[tuple[int, float]]]:
    """Context length and loss by order, of the runs that counted."""
    found: dict[str, dict[int, float]] = {}
    for run in sweep.runs:
        summary = read_summary(run.paths.summary) or {}
        for order, loss in summary.get("markov_losses", {}).items():
            found.setdefault(order, {})[summary["context_length"]] = loss
    return {order: sorted(points.items()) for order, points in found.items()}


def _draw_baselines(axes: Any, key: str, baselines: dict[str, list[tuple[int, float]]]) -> None:
    for order, points in baselines.items():
        lengths, values = [length for length, _ in points], [_OF_LOSS[key](loss) for _, loss in points]
        axes.plot(lengths, values, color="#999999", linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(
            f"Markov, order {order}",
            xy=(lengths[0], values[0]),
            xytext=(0, 3),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
        )
