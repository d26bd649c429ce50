"""This machine as a device of a plan: its ceilings, and four constants fitted to a few short steps.

    ceilings of 1, M ranks (bench/ceilings.py) --+
    steps at 2k to 131k tokens, on 1 and M ranks ---+--fit--> calibration.json --machine_device--> Device

Two constants are of time: bytes a second of the tile-wise work, and what a step costs besides. Two are of memory: what a
process holds before anything, and the allocator's slack. Measuring takes torch, in processes of its own; reading takes none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hyena_ds.bench.case import Case, case_of_columns
from hyena_ds.bench.limits import measure_ceilings, say
from hyena_ds.bench.processes import Ranks
from hyena_ds.bench.report import spread_of_turns, write_json
from hyena_ds.config.loading import to_plain
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import PolicyName
from hyena_ds.cost.devices import GIB, Cluster, Device, Links, Rates
from hyena_ds.cost.memory import moments, with_slack
from hyena_ds.cost.shape import StepShape
from hyena_ds.cost.step_time import optimizer_bytes, step_time
from hyena_ds.cost.traffic import traffic
from hyena_ds.errors import UserError
from hyena_ds.runtime.local_ranks import usable_cores
from hyena_ds.text import now

WIDTH, LAYERS = 128, 2
STEPS: tuple[tuple[int, PolicyName], ...] = (
    (2048, "balanced"),
    (8192, "fastest"),
    (32768, "balanced"),
    (131072, "leanest"),
)
"""Context length and policy of the steps that constants are fitted to."""
CEILING_LENGTHS = [512, 2048, 8192, 32768, 131072, 524288]
_FORMAT = 1
_OF_A_STEP = ("context_length", "width", "layers", "batch", "accumulation", "sequence_parallel", "policy", "precision")
_OF_A_RUN = ("data_parallel", "zero_stage", "exchange_precision", "kernels")
"""What a step of a run has besides: those of `calibrate` are of one sequence group."""
_THREADS = 1
"""Threads of a rank. With more, any other work on the machine holds up every one of their barriers, and times say nothing."""


@dataclass(frozen=True)
class Fit:
    """Constants of steps on one number of ranks."""

    ranks: int
    pointwise: float
    """Bytes a second."""
    step: float
    """Seconds."""
    process_gib: float
    slack: float


def calibration_case(length: int, ranks: int, policy: PolicyName, width: int = WIDTH, layers: int = LAYERS) -> Case:
    """A step on this machine, its sequence cut over all `ranks`."""
    known = {"context_length": length, "maximum_context": length, "width": width, "layers": layers}
    return case_of_columns({**known, "sequence_parallel": ranks, "policy": policy, "threads": _THREADS})


def measure_step(case: Case, rounds: int) -> dict[str, Any]:
    """The trainer's own step in processes of its own: seconds of the slowest rank, peak memory of the largest."""
    P = case.sequence_parallel
    with Ranks("hyena_ds.bench.engine_side:EngineSide", P, True, case.threads, "tuned", case=case) as ranks:
        ranks.ask("step")
        turns = [ranks.ask("step") for _ in range(rounds)]
        return {**spread_of_turns(turns), "machine": ranks.machine()}


def calibrate(ranks: int, rounds: int = 3, width: int = WIDTH) -> dict[str, Any]:
    """Measure ceilings of one rank, of one a core and of `ranks`, and the steps that constants are fitted to."""
    cores = len(usable_cores())
    counts = sorted({1, min(ranks, cores), ranks})
    ceilings, steps = {}, []
    for count in counts:
        say(f"measuring the ceilings of {count} rank{'s' if count > 1 else ''}")
        found, _ = measure_ceilings(count, _THREADS, "pieces", width=width, lengths=CEILING_LENGTHS)
        ceilings[str(count)] = found
    for count in counts:
        if count > cores and len(counts) > 1:
            continue
        for length, policy in STEPS:
            say(f"measuring a step of {length:,} tokens on {count} rank{'s' if count > 1 else ''}, {policy}")
            case = calibration_case(length, count, policy, width)
            measured = measure_step(case, rounds if length < STEPS[-1][0] else max(1, rounds - 1))
            machine = measured.pop("machine")
            steps.append({**case.columns(), **measured})
    known = {"format": _FORMAT, "date": now(), "machine": machine, "width": width}
    return fitted({**known, "ceilings": ceilings, "steps": steps})


def row_of_step(shape: StepShape, seconds: dict[str, float], peak_memory_gib: float) -> dict[str, Any]:
    """A step that another program has measured here, one thread a rank, as a calibration keeps it. `seconds` are by `median`,
    `min` and `max`."""
    columns = {name: getattr(shape, name) for name in (*_OF_A_STEP, *_OF_A_RUN)}
    measured = {"wall_seconds": seconds, "peak_memory_gib": peak_memory_gib}
    model = to_plain(shape.config)
    return {**columns, "maximum_context": model["maximum_context"], "threads": _THREADS, "model": model, **measured}


def with_steps(found: dict[str, Any], steps: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The same with these steps too, fitted again; and how many there were before of the same shapes, which they replace.

    Raises UserError for a calibration whose steps are not readable.
    """
    shapes = [_shape_of(step) for step in steps]
    try:
        others = [step for step in found["steps"] if _shape_of(step) not in shapes]
        after = fitted({**found, "steps": [*others, *steps]})
        return after, len(found["steps"]) - len(others)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "--calibration: found steps that are not those of this version; measure again, with --calibrate"
        ) from None


def _shape_of(step: dict[str, Any]) -> StepShape:
    """What a step of a calibration is of."""
    shape = case_of_columns(step)
    model = ModelConfig(**step["model"]) if "model" in step else shape.config
    return replace(shape, config=model, **{name: step[name] for name in _OF_A_RUN if name in step})


def fitted(found: dict[str, Any]) -> dict[str, Any]:
    """The same with `fits`: constants for each number of ranks that steps were measured on."""
    fits = []
    measured = [(step, _shape_of(step)) for step in found["steps"]]
    for count in sorted({shape.ranks for _, shape in measured}):
        steps = [step for step, shape in measured if shape.ranks == count]
        shapes = [shape for _, shape in measured if shape.ranks == count]
        rates = _rates(found, count, Fit(count, math.inf, 0.0, 0.0, 0.0))
        pointwise, rest = _fit_time(shapes, [step["wall_seconds"]["median"] for step in steps], rates)
        process, slack = _fit_memory(shapes, [step["peak_memory_gib"] * GIB for step in steps])
        fits.append(asdict(Fit(count, pointwise, rest, process / GIB, slack)))
    return {**found, "fits": fits}


def _fit_time(shapes: Sequence[StepShape], seconds: Sequence[float], rates: Rates) -> tuple[float, float]:
    """(bytes a second of tile-wise work, seconds besides): what the ceilings leave unexplained, least relative squares."""
    rows = []
    for shape, measured in zip(shapes, seconds, strict=True):
        device = Device("this", 0.0, rates, 0.0, 0.0, on_cpu=True)
        known = step_time(shape, Cluster(1, shape.ranks, device)).seconds
        moved = traffic(shape, True).layer_bytes + optimizer_bytes(shape)
        rows.append((moved / measured, 1.0 / measured, (measured - known) / measured))
    per_byte, rest = _least_squares(rows)
    return 1.0 / max(per_byte, 1e-15), rest


def _fit_memory(shapes: Sequence[StepShape], peaks: Sequence[float]) -> tuple[float, float]:
    """(bytes of the process, slack), least relative squares over the highest moments."""
    rows = []
    for shape, measured in zip(shapes, peaks, strict=True):
        found = moments(shape, True)
        live = {name: sum(size * count for _, size, count in held) for name, held in found.items()}
        highest = max(live, key=lambda name: live[name])
        rows.append(
            (with_slack(shape, found, highest, True) / measured, 1.0 / measured, (measured - live[highest]) / measured)
        )
    slack, process = _least_squares(rows)
    return process, slack


def _least_squares(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(x, y), neither negative, that make a x + b y nearest to c over all rows (a, b, c)."""
    table = np.array(rows)
    candidates = []
    for known in ([0, 1], [0], [1]):
        found = np.zeros(2)
        found[known] = np.linalg.lstsq(table[:, known], table[:, 2])[0]
        candidates.append(found.clip(0.0) if len(known) == 1 else found)
    allowed = [found for found in candidates if (found >= 0).all()]
    x, y = min(allowed, key=lambda found: float(np.square(table[:, :2] @ found - table[:, 2]).sum()))
    return float(x), float(y)


def _rates(found: dict[str, Any], ranks: int, fit: Fit) -> Rates:
    """The rates of one of `ranks` ranks that were measured."""
    ceiling = found["ceilings"][str(ranks)]
    exchange, latency = ceiling.get("exchange", math.inf), ceiling.get("latency", 0.0)
    return Rates(
        **{name: ceiling[name] for name in ("gemm_float32", "gemm_bfloat16", "copy", "filter", "kernel")},
        pointwise=fit.pointwise,
        links=Links(exchange, exchange, latency, latency),
        transforms=tuple((int(points), float(rate)) for points, rate in ceiling["transforms"]),
        step=fit.step,
        asynchronous="accelerator" in found["machine"],
    )


def machine_device(found: dict[str, Any], ranks: int) -> Device:
    """This machine, as one of `ranks` ranks has it. Ranks beyond the cores share them in turn.

    Raises UserError when nothing was measured that stands for so many ranks.
    """
    fits = [Fit(**fit) for fit in found["fits"]]
    machine, on_cpu = found["machine"], "accelerator" not in found["machine"]
    measured = sorted(int(count) for count in found["ceilings"])
    fit = max((f for f in fits if f.ranks <= ranks), key=lambda f: f.ranks)
    if ranks > measured[-1]:
        raise UserError(
            f"calibration: found ceilings of {', '.join(map(str, measured))} ranks, wanted those of {ranks}; run "
            f"hyena-ds plan ... --devices-per-node {ranks} --calibrate"
        )
    at = min(count for count in measured if count >= ranks)
    rates = _rates(found, fit.ranks, fit)
    shared = max(1.0, ranks / machine["cores"]) if on_cpu else 1.0
    links = _rates(found, at, fit).links
    if shared > 1.0:
        # Messages of ranks that share cores are late because others compute meanwhile: that time is counted there.
        late = rates.links.latency_inside * shared
        links = replace(links, latency_inside=late, latency_between=late)
        rates = rates.slowed(shared)
    rates = replace(rates, links=links)
    memory = (machine["memory_gib"] / ranks if on_cpu else machine["accelerator_gib"]) * GIB
    source = f"{machine['cpu']}, {machine['cores']} cores" if on_cpu else machine["accelerator"]
    return Device("this", memory, rates, fit.process_gib * GIB, fit.slack, on_cpu, f"measured: {source}")


def write_calibration(path: Path, found: dict[str, Any]) -> None:
    """Raises UserError where the file cannot be written."""
    write_json("--calibration", path, found, make_parent=True)


def read_calibration(path: Path) -> dict[str, Any]:
    """Raises UserError for what is not there or is no calibration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"--device this: found no calibration at {path}; measure this machine first, with --calibrate"
        ) from None
    except ValueError:
        found = None
    whole = isinstance(found, dict) and {"format", "machine", "ceilings", "fits"} <= set(found)
    if not whole or found["format"] != _FORMAT:
        raise UserError(f"--calibration {path}: not a calibration of this version; measure again, with --calibrate")
    return found
