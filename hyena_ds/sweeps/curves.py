"""A sweep of a task: metrics of the test set over one setting of the task, mean and standard deviation over seeds.

    rows of complete runs --settings other than the seed--> Point: values of every seed --> table (Markdown), curves.png

The setting is the first that varies under `task` with numbers alone; every other, but for the stages', has a line of its own.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from hyena_ds.errors import UserError
from hyena_ds.files.rows import Row
from hyena_ds.plots import COLOURS, INK, dress, line, panels
from hyena_ds.sweeps.plan import Sweep
from hyena_ds.sweeps.results import COMPLETE, test_metrics
from hyena_ds.text import markdown_table

PLOT = "curves.png"
_SHOWN = {"classification": ("accuracy", "mcc", "auroc"), "per_base": ("accuracy", "mcc", "auroc")}
"""Metrics of a kind, where they are not its first three."""


@dataclass
class Point:
    """The complete runs that differ by their seed alone."""

    label: str
    """Settings of the line that it belongs to."""
    x: float
    values: dict[str, list[float]] = field(default_factory=dict)
    """By metric."""
    runs: int = 0


def points_of(sweep: Sweep, rows: list[Row]) -> tuple[str, list[Point]]:
    """(the setting, points by line and setting). Raises UserError where no setting of the task varies with numbers."""
    keys = [key for keys in sweep.config.dimensions for key in keys]
    numeric = [key for key in keys if key.startswith("task.") and all(_number(row[key]) is not None for row in rows)]
    if not numeric:
        raise UserError("found no setting of the task that varies with numbers")
    setting = numeric[0]
    others = [key for key in keys if key not in (setting, "seed") and not key.startswith("stages.")]
    found: dict[tuple[str, float], Point] = {}
    for row in rows:
        x = _number(row[setting])
        if row["status"] != COMPLETE or x is None:
            continue
        label = ", ".join(f"{key.removeprefix('task.')} {row[key]}" for key in others)
        point = found.setdefault((label, x), Point(label, x))
        point.runs += 1
        for name in _shown(sweep):
            if row[f"test_{name}"] is not None:
                point.values.setdefault(name, []).append(row[f"test_{name}"])
    return setting, [found[key] for key in sorted(found)]


def table(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Markdown: a row a point; mean ± standard deviation over the seeds. Nothing where nothing can be set side by side."""
    try:
        setting, points = points_of(sweep, rows)
    except UserError:
        return []
    metrics = _shown(sweep)
    titles = ["", setting, "runs", *(f"test {name}" for name in metrics)]
    cells = [[p.label, f"{p.x:g}", str(p.runs), *(_spread(p.values.get(name, [])) for name in metrics)] for p in points]
    if not any(point.label for point in points):
        titles, cells = titles[1:], [row[1:] for row in cells]
    return markdown_table(titles, cells)


def plot(sweep: Sweep, rows: list[Row]) -> Path:
    """Write the image into the sweep's directory. Raises UserError where there is nothing to draw, or no matplotlib."""
    setting, points = points_of(sweep, rows)
    settings = sorted({point.x for point in points})
    if len(settings) < 2:
        raise UserError(f"found fewer than two values of {setting} among the complete runs")
    file, metrics = sweep.directory / PLOT, _shown(sweep)
    with panels(file, len(metrics), f"{sweep.config.name}: test set, mean and every seed", (13.5, 4.2)) as all_axes:
        for axes, name in zip(all_axes, metrics, strict=True):
            for number, label in enumerate(dict.fromkeys(point.label for point in points)):
                mine = [point for point in points if point.label == label and name in point.values]
                places = [settings.index(point.x) for point in mine]
                line(axes, number, places, [statistics.fmean(point.values[name]) for point in mine], label)
                for place, point in zip(places, mine, strict=True):
                    each = point.values[name]
                    axes.plot([place] * len(each), each, ".", color=COLOURS[number % len(COLOURS)], alpha=0.5)
            dress(axes, f"test {name}", label=setting)
            axes.set_xticks(range(len(settings)), [f"{value:g}" for value in settings])
            axes.margins(y=0.15)
        if any(point.label for point in points):
            all_axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return file


def _shown(sweep: Sweep) -> tuple[str, ...]:
    config = sweep.runs[0].config
    assert config.task is not None
    return _SHOWN.get(config.task.kind, test_metrics(config)[1:4]) if config.task.test is not None else ()


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
