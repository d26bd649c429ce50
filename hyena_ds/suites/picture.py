"""A suite's scores as an image: a line of points for each task, row zero as a bar that models have to pass.

plots.py draws.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError
from hyena_ds.plots import COLOURS, GREY, INK, MARKERS, dress, panels
from hyena_ds.suites.plan import Plan
from hyena_ds.suites.scores import TaskScores
from hyena_ds.suites.table import ONE, ZERO

_INCHES = 0.42
"""Height of a task."""


def plot(file: Path, plan: Plan, scores: list[TaskScores]) -> None:
    """Write the image. Raises UserError where there is nothing to draw, or no matplotlib."""
    drawn = [found for found in scores if found.best is not None or found.row_zero is not None]
    if not drawn:
        raise UserError("found no score yet")
    height = 1.9 + _INCHES * len(drawn)
    partial = file.with_name(f".partial-{file.name}")
    with panels(
        partial, 1, f"{plan.suite.name}: test sets, mean and standard deviation over seeds", (9.5, height)
    ) as axes:
        _draw(axes[0], plan, drawn)
    os.replace(partial, file)


def _draw(axes: Any, plan: Plan, drawn: list[TaskScores]) -> None:
    models = list(plan.suite.models)
    apart = 0.6 / max(1, len(models) - 1)
    for place, found in enumerate(drawn):
        if found.row_zero is not None:
            label = f"{ZERO}, the best rule without a model" if place == 0 else None
            zero = found.row_zero[1]
            axes.plot([zero, zero], [place - 0.38, place + 0.38], color=INK, linewidth=2.5, label=label)
        for score in plan.suite.published_of(found.task, found.group):
            if score.metric == found.task.metric:
                compares = score.why_not_comparable is None
                face = GREY if compares else "none"
                axes.plot(score.score, place, "d", color=GREY, markerfacecolor=face, markersize=6, zorder=1)
    for number, row in enumerate(models):
        points = [(place, one) for place, found in enumerate(drawn) for one in found.rows if one.row == row]
        points = [(place, one) for place, one in points if one.mean is not None]
        axes.errorbar(
            [one.mean for _, one in points],
            [place - 0.3 + number * apart if len(models) > 1 else place for place, _ in points],
            xerr=[one.deviation or 0.0 for _, one in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            markersize=6,
            capsize=2,
            label=row,
        )
        ones = [(place, one) for place, one in points if one.is_one]
        axes.plot(
            [one.mean for _, one in ones],
            [place - 0.3 + number * apart if len(models) > 1 else place for place, _ in ones],
            "x",
            color=INK,
            markersize=5,
            zorder=3,
        )
    if any(one.is_one and one.mean is not None for found in drawn for one in found.rows):
        axes.plot([], [], "x", color=INK, linestyle="none", label=f"crossed out: {ONE}, no seed in it")
    if any(plan.suite.published_of(found.task, found.group) for found in drawn):
        axes.plot([], [], "d", color=GREY, linestyle="none", label="published, comparable")
        axes.plot([], [], "d", color=GREY, markerfacecolor="none", linestyle="none", label="published, not comparable")
    dress(axes, "", label="score by the task's metric")
    axes.set_yticks(range(len(drawn)), [_named(found) for found in drawn])
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower center", ncol=3)


def _named(found: TaskScores) -> str:
    verdict = found.prepared.verdict if found.prepared is not None else None
    return f"{found.name} ({found.task.metric}{f', audit {verdict}' if verdict else ''})"
