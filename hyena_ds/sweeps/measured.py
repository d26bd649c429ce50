"""What the runs of `hyena-ds tune` measured: a row a grid, the best of them, and what plan learns from it.

    metrics.jsonl, environment.jsonl --> Measured: seconds of the steps after the first ones, GiB --> table, results.csv, best
                                         of this machine --> steps of its calibration, fitted again

Takes no torch, but to see which machine this is.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.cost.devices import GIB, Cluster, Device
from hyena_ds.cost.shape import StepShape, shape_of_stage
from hyena_ds.errors import UserError
from hyena_ds.files.rows import METRICS, STARTS, Row, read_rows
from hyena_ds.planning.calibration import machine_device, row_of_step, with_steps, write_calibration
from hyena_ds.planning.forecast import Prediction, predict
from hyena_ds.sweeps.plan import Sweep, SweepRun
from hyena_ds.sweeps.results import COMPLETE, rows_of
from hyena_ds.text import aligned, counted, number

_SETTLING = 5
"""One step of so many, from the first on, is not counted: memory is taken, plans of transforms are made."""
NEARLY = 1.03
"""A grid that takes at most so many times as long as the best is as good, even where spreads do not overlap."""
_MUCH_WAITING = 0.1
"""Share of a step that waiting for its data may take until it is said."""


@dataclass(frozen=True)
class Measured:
    """A grid, and what its run came to."""

    run: SweepRun
    shape: StepShape
    status: str
    error: str | None
    seconds: tuple[float, ...]
    """Each counted step's, the wait for its data left out."""
    peak_memory_gib: float | None
    """The rank's that held most."""
    input_wait_seconds: float
    """Median."""
    start: Row
    """On what it ran: the last row of environment.jsonl, empty where there is none."""
    prediction: Prediction | None

    @property
    def spread(self) -> tuple[float, float, float]:
        """Median, lower and upper quartile."""
        if len(self.seconds) < 2:
            return (self.seconds[0],) * 3
        lower, median, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return median, lower, upper

    @property
    def is_complete(self) -> bool:
        """Whether there are numbers of it."""
        return self.status == COMPLETE and len(self.seconds) > 0 and self.peak_memory_gib is not None

    def row(self) -> Row:
        """For results.csv."""
        shape, found = self.shape, self.prediction
        median, lower, upper = self.spread if self.is_complete else (None,) * 3
        return {
            "run": self.run.name,
            "context_length": shape.context_length,
            **{name: getattr(shape, name) for name in ("data_parallel", "sequence_parallel", "accumulation")},
            "micro_batch_size": shape.batch,
            "activation_policy": shape.policy,
            "status": self.status,
            "steps": len(self.seconds),
            "seconds": median,
            "seconds_lower_quartile": lower,
            "seconds_upper_quartile": upper,
            "tokens_per_second": None if median is None else shape.tokens / median,
            "input_wait_seconds": self.input_wait_seconds if self.is_complete else None,
            "peak_memory_gib": self.peak_memory_gib,
            "predicted_seconds": None if found is None else found.time.seconds,
            "predicted_gib": None if found is None else found.memory.total / GIB,
            "error": self.error,
        }


def measured_of(sweep: Sweep, ranks: int, device: Device | None) -> list[Measured]:
    """What there is of every run, in the sweep's order; predicted for `device` where there is one.

    Runs that began say on how many ranks and machines; for the others it is `ranks` on one.
    """
    return [_measured(run, row, ranks, device) for run, row in zip(sweep.runs, rows_of(sweep), strict=True)]


def _measured(run: SweepRun, row: Row, ranks: int, device: Device | None) -> Measured:
    starts = read_rows(run.paths.environment, STARTS)
    start = starts[-1] if starts else {}
    there, hosts = start.get("ranks") or ranks, len(start.get("hosts") or ()) or 1
    (plan,) = plan_stages(run.config, there)
    on_cpu = start.get("device") == "CPU" if start else device is not None and device.on_cpu
    shape = shape_of_stage(run.config, plan, on_cpu)
    steps = [row for row in read_rows(run.paths.metrics, METRICS) if "loss" in row and not row.get("skipped")]
    steps = [row for row in steps if (row.get("tokens_per_second") or 0.0) > 0]
    counts = steps[-(-len(steps) // _SETTLING) :] or steps
    if device is not None and device.name == "this" and start and not is_here(start):
        device = None
    cluster = Cluster(hosts, max(1, there // hosts), device) if device is not None else None
    waits = [row.get("input_wait_seconds") or 0.0 for row in counts]
    return Measured(
        run,
        shape,
        row["status"],
        row["error"],
        tuple(shape.tokens / step["tokens_per_second"] for step in counts),
        row["peak_memory_gib"],
        statistics.median(waits) if waits else 0.0,
        start,
        None if cluster is None else predict(shape, cluster),
    )


def grid(shape: StepShape) -> list[str]:
    """Grid, batch and policy, as `hyena-ds plan` shows them."""
    batch = f"{shape.sequences} = {shape.data_parallel} x {shape.batch} x {shape.accumulation}"
    return [f"dp {shape.data_parallel} x sp {shape.sequence_parallel}", batch, shape.policy]


def table(rows: Sequence[Measured], own: StepShape) -> list[str]:
    """The complete rows, the fastest first, then the others, with what they said at their end."""
    best = best_of(rows)
    cells = [
        ["", "grid", "batch", "policy", "s a step", "quartiles", "tokens/s", "GiB", "predicted s", "predicted GiB"]
    ]
    for row in sorted(rows, key=lambda row: row.spread[0] if row.is_complete else float("inf")):
        marks = [word for word, holds in (("best", row is best), ("yours", grid(row.shape) == grid(own))) if holds]
        shown = ["-", row.status, "-", number(row.peak_memory_gib)]
        if row.is_complete:
            median, lower, upper = row.spread
            shown = [number(median), f"{number(lower)} to {number(upper)}", f"{row.shape.tokens / median:,.0f}"]
            shown.append(number(row.peak_memory_gib))
        cells.append([", ".join(marks), *grid(row.shape), *shown, *predicted(row.prediction)])
    return aligned(cells, left=(0, 1, 2, 3)) + [f"{row.run.name}: {row.error}" for row in rows if row.error]


def predicted(found: Prediction | None) -> list[str]:
    """Seconds a step and GiB a rank."""
    return ["-", "-"] if found is None else [number(found.time.seconds), number(found.memory.total / GIB)]


def best_of(rows: Sequence[Measured]) -> Measured | None:
    """The one with the shortest median; None where none is complete."""
    return min((row for row in rows if row.is_complete), key=lambda row: row.spread[0], default=None)


def as_good_as(best: Measured, rows: Sequence[Measured]) -> list[Measured]:
    """Other rows whose steps cannot be told from the best's: what lies between their quartiles overlaps, or the medians are nearly equal."""
    median, _, upper = best.spread
    return [
        row
        for row in rows
        if row is not best and row.is_complete and (row.spread[1] <= upper or row.spread[0] <= NEARLY * median)
    ]


def said_of_best(rows: Sequence[Measured], own: StepShape) -> list[str]:
    """The best in a line, and what is as good; nothing where no row is complete."""
    best = best_of(rows)
    if best is None:
        return []
    mine = next((row for row in rows if grid(row.shape) == grid(own) and row.is_complete), None)
    against = ""
    if mine is not None and mine is not best:
        against = f", {best.spread[0] / mine.spread[0]:.0%} of the time of yours"
    lines = [f"best: {', '.join(grid(best.shape))}: {number(best.spread[0])} s a step{against}"]
    equal = as_good_as(best, rows)
    if equal:
        named = [f"{row.run.name} ({number(row.peak_memory_gib)} GiB)" for row in equal]
        lines.append(f"nearly equal, which so few steps cannot tell apart: {', '.join(named)}")
    if mine is not None and (mine is best or mine in equal):
        lines.append("yours is among the best: there is nothing to change")
    if best.input_wait_seconds > _MUCH_WAITING * best.spread[0]:
        lines.append(
            f"a step waits {number(best.input_wait_seconds)} s for its data besides, whatever the grid: see data.workers"
        )
    return lines


def add_to_calibration(path: Path, found: dict[str, Any], rows: Sequence[Measured]) -> list[str]:
    """Add what ran on this machine to its calibration, fit it again, and write it. Returns what is to be said of it."""
    rows = [row for row in rows if row.is_complete]
    if not rows:
        return []
    reason = _not_of(found, rows)
    if reason is not None:
        return [f"plan's constants stay as they are: {reason}"]
    steps = []
    for row in rows:
        seconds = {"median": row.spread[0], "min": min(row.seconds), "max": max(row.seconds)}
        steps.append(row_of_step(row.shape, seconds, row.peak_memory_gib or 0.0))
    after, replaced = with_steps(found, steps)
    write_calibration(path, after)
    before, now = errors_of(found, rows), errors_of(after, rows)
    errors = ", ".join(
        f"{what} {was:.1f} -> {is_now:.1f} %" for what, was, is_now in zip(("time", "memory"), before, now, strict=True)
    )
    again = f", {replaced} of which replace older ones" if replaced else ""
    return [
        f"plan's constants: {counted(len(steps), 'measured step')} added{again}; error of what plan predicts for these grids (root mean "
        f"square): {errors}",
        f"written: {path}",
    ]


def errors_of(calibration: dict[str, Any], rows: Sequence[Measured]) -> tuple[float, float]:
    """Root mean square of the relative errors of predicted seconds and GiB, in per cent."""
    times, sizes = [], []
    for row in rows:
        ranks = row.shape.ranks
        found = predict(row.shape, Cluster(1, ranks, machine_device(calibration, ranks)))
        times.append(found.time.seconds / row.spread[0] - 1)
        sizes.append(found.memory.total / GIB / (row.peak_memory_gib or 1.0) - 1)
    return 100 * _root_mean_square(times), 100 * _root_mean_square(sizes)


def _root_mean_square(values: Sequence[float]) -> float:
    return statistics.fmean(value * value for value in values) ** 0.5


def _not_of(calibration: dict[str, Any], rows: Sequence[Measured]) -> str | None:
    """Why the rows are no steps of that calibration's machine; None where they are."""
    from hyena_ds.bench.measure import machine

    here, there = machine(), calibration["machine"]
    on_cpu = "accelerator" not in there
    if here != there:
        differ = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
        return (
            f"they are of another machine or version than this ({', '.join(differ)}); measure again, with --calibrate"
        )
    for row in rows:
        ranks, threads = row.shape.ranks, row.start.get("threads")
        if not is_here(row.start):
            return f"{row.run.name} ran on other machines than this one"
        if on_cpu and threads != 1:
            return f"{row.run.name} ran with {threads} threads a rank, and they are of one; set OMP_NUM_THREADS=1"
        if str(ranks) not in calibration["ceilings"] or (on_cpu and ranks > there["cores"]):
            return f"they say nothing of {counted(ranks, 'rank')}, each with a core of its own; --calibrate measures so many"
    return None


def is_here(start: Row) -> bool:
    """Whether that start of a run was on this machine alone."""
    return list(start.get("hosts") or ()) == [platform.node()]


def device_of(named: str | None, calibration: dict[str, Any] | None, ranks: int) -> Device | None:
    """What grids are predicted for: the device that is named, else this machine where it is calibrated. Raises UserError."""
    from hyena_ds.cost.devices import published_device

    if named is not None and named != "this":
        return published_device(named)
    if calibration is None:
        if named == "this":
            raise UserError("--device this: found no calibration of this machine; measure it first, with --calibrate")
        return None
    try:
        return machine_device(calibration, ranks)
    except UserError:  # so many ranks were not measured
        if named == "this":
            raise
        return None
