"""The charts of a run's page, by tokens: what is drawn of which rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyena_ds.config.arithmetic import tokens_until
from hyena_ds.report.charts import Boundary, Point, Series, line_chart, short
from hyena_ds.runs.records import Records, Row
from hyena_ds.text import in_tokens

__all__ = ["EFFICIENCY", "OPTIMIZER", "SPEED", "efficiency", "loss", "short", "steps", "validation"]

_LOG_FROM = 50.0
"""Tokens are drawn on a logarithmic axis where the run has so many times those of its first stage."""
_FEWEST = 10
"""Losses without which all of them are shown."""
_AS_SHARE = {"from_zero": True, "show": lambda value: f"{100 * value:.3g} %"}
SPEED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Tokens a second": ("tokens_per_second", 2, {"from_zero": True}),
    "Peak memory of the largest rank, GiB": ("peak_memory_gib", 3, {"from_zero": True}),
    "Share of a step spent waiting for exchanges": ("exchange_share", 4, _AS_SHARE),
    "Wait for data, as a share of the step": ("input_share", 5, _AS_SHARE),
}
"""Titles of charts of the training steps: column, colour, and how it is drawn."""
EFFICIENCY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Model flops utilisation": ("mfu", 2, _AS_SHARE),
    "Share of the machine's measured limit": ("limit_share", 4, _AS_SHARE),
    "Compute time of the slowest rank, times the others'": ("slowest_times", 5, {}),
}
"""The same, of what not every run has."""
OPTIMIZER: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Learning rate": ("learning_rate", 6, {}),
    "Gradient norm before clipping": ("gradient_norm", 7, {"log_y": True}),
}


def loss(records: Records) -> str:
    """Training loss with stage boundaries, validations and, at the end, the Markov baselines."""
    points = _points(records, records.steps, "loss")
    series = [Series("training", points, 0)]
    contexts = {number: stage.context_length for number, stage in enumerate(records.config.schedule)}
    own = [row for row in records.validations if contexts.get(row.get("stage", 0)) in (row["context_length"], None)]
    series += [Series("validation, the stage's context", _points(records, own, "validation_loss"), 1, marks=True)]
    markov = (records.summary or {}).get("markov_losses") or {}
    ends = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    series += [
        Series(f"Markov, order {order}", [(ends[0], value), (ends[1], value)], 3 + number, dashed=True)
        for number, (order, value) in enumerate(markov.items())
    ]
    return _chart(records, f"Loss, {records.unit}", series, cut=_cut(points), wide=True)


def validation(records: Records) -> str:
    """Validation loss by tokens, a line for each context length."""
    lengths = sorted({row["context_length"] for row in records.validations})
    series = []
    for number, length in enumerate(lengths):
        rows = [row for row in records.validations if row["context_length"] == length]
        series.append(Series(in_tokens(length), _points(records, rows, "validation_loss"), number % 8, marks=True))
    points = [point for one in series for point in one.points]
    return _chart(records, f"Validation loss, {records.unit}, by context length", series, cut=_cut(points), wide=True)


def steps(records: Records, charts: dict[str, tuple[str, int, dict[str, Any]]]) -> str:
    """Charts of columns of the training steps, two beside each other."""
    rows = [{**row, "input_share": _input_share(records, row)} for row in records.steps]
    drawn = (
        _chart(records, title, [Series("", _points(records, rows, column), colour)], **options)
        for title, (column, colour, options) in charts.items()
    )
    return f'<div class="pair">{"".join(drawn)}</div>'


def efficiency(records: Records) -> str:
    """Those charts of efficiency that there are numbers for; empty without any."""
    there = {
        title: chart
        for title, chart in EFFICIENCY.items()
        if any(row.get(chart[0]) is not None for row in records.steps)
    }
    return steps(records, there) if there else ""


def _cut(points: Sequence[Point]) -> float | None:
    """The largest loss that a picture has room for: those of the first steps, and of a spike, are far above all others."""
    values = sorted(value for _, value in points)
    if len(values) < _FEWEST:
        return None
    low, high = values[len(values) // 10], values[9 * len(values) // 10]
    return high + (high - low)


def boundaries(records: Records) -> list[Boundary]:
    """Where stages begin, and where a run was started again."""
    found, first = [], 0
    for number, stage in enumerate(records.config.schedule):
        at = tokens_until(records.config, max(first, 1 if number == 0 else 0))
        found.append(Boundary(at, in_tokens(stage.context_length)))
        first += stage.step_count
    found += [
        Boundary(tokens_until(records.config, max(row.get("step", 0), 1)), f"started again after step {row.get('step', 0):,}", True)
        for row in records.starts[1:]
    ]  # fmt: skip
    return found


def _chart(records: Records, title: str, series: Sequence[Series], **options: Any) -> str:
    config = records.config
    first = tokens_until(config, 1)
    reached = max(tokens_until(config, records.step), first)
    log = len(config.schedule) > 2 and config.total_tokens > _LOG_FROM * config.schedule[0].total_tokens
    begin = float(first) if log else 0.0
    return line_chart(title, series, boundaries(records), (begin, float(reached)), log_x=log, **options)


def _points(records: Records, rows: Sequence[Row], key: str) -> list[Point]:
    """By the tokens of the schedule up to each row's step."""
    return [
        (float(tokens_until(records.config, row["step"])), float(row[key])) for row in rows if row.get(key) is not None
    ]


def _input_share(records: Records, row: Row) -> float | None:
    """The wait for a step's data, as a share of both; None where that is not known."""
    rate, wait = row.get("tokens_per_second"), row.get("input_wait_seconds")
    if not rate or wait is None:
        return None
    tokens = tokens_until(records.config, row["step"]) - tokens_until(records.config, row["step"] - 1)
    seconds = tokens / rate + wait
    return wait / seconds if seconds > 0 else None
