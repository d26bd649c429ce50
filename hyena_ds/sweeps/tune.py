"""`hyena-ds tune CONFIG`: which grid of a stage is fastest here, by running a few steps on each. The command; takes no torch.

candidates --sweep.yaml--> a run each (or a Slurm array) --> table, results.csv, the best --> plan's constants
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyena_ds.bench.command import add_option
from hyena_ds.config.limits import MOST_LOCAL_RANKS, MOST_RANKS, check_count, whole_number
from hyena_ds.errors import UserError
from hyena_ds.runtime.interruption import STOPPED_CODES

if TYPE_CHECKING:
    from hyena_ds.cost.devices import Device
    from hyena_ds.planning.forecast import Prediction
    from hyena_ds.sweeps.grids import Stage
    from hyena_ds.sweeps.plan import Sweep

_MOST_STEPS, _MOST_GRIDS = 10_000, 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds tune`; `run` is a function of the parsed arguments."""
    parser.add_argument("config", help="YAML file of a whole run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting for all its runs")
    longest: dict[str, Any] = {"shown": "that of the longest context", "type": whole_number}
    add_option(parser, "--stage", None, "number of the stage, as `hyena-ds check` shows it", **longest)
    add_option(parser, "--steps", 20, "optimizer steps on each grid", type=whole_number)
    add_option(parser, "--most", 8, "grids that are measured, the config's own among them", type=whole_number)
    here: dict[str, Any] = {"shown": "as many as train would start", "type": whole_number}
    add_option(parser, "--ranks", None, "ranks of all machines", **here)
    add_option(parser, "--nodes", 1, "machines, with --slurm", type=whole_number)
    named = "what grids are chosen for: a device of `hyena-ds plan`, or this"
    add_option(parser, "--device", None, named, shown="this machine where it is calibrated")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine for plan first, about 5 minutes")
    cache: dict[str, Any] = {"shown": "the user's cache", "metavar": "FILE"}
    add_option(parser, "--calibration", None, "where that measurement is kept", **cache)
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--list", action="store_true", help="print the grids and what is predicted of them, and start none"
    )
    way.add_argument("--table", action="store_true", help="collect what there is, and start nothing")
    way.add_argument(
        "--slurm", action="store_true", help="write a Slurm job array, a grid a task, and print how to submit it"
    )
    parser.set_defaults(run=_tune)


def _tune(parsed: argparse.Namespace) -> int:
    from hyena_ds.planning import calibration
    from hyena_ds.planning.command import calibration_path
    from hyena_ds.runtime.local_ranks import local_ranks
    from hyena_ds.sweeps.grids import candidates, directory_of, read_sweep, recorded_ranks, stage_of, write_sweep
    from hyena_ds.sweeps.measured import device_of
    from hyena_ds.sweeps.slurm import write_array
    from hyena_ds.tasks.deriving import load_run

    bounds = {"steps": _MOST_STEPS, "most": _MOST_GRIDS, "ranks": MOST_RANKS, "nodes": MOST_RANKS}
    for name, most in bounds.items():
        check_count(f"--{name}", getattr(parsed, name), most)
    _check_ranks(parsed)
    config = load_run(parsed.config, parsed.overrides)
    recorded = recorded_ranks(directory_of(config, parsed.stage)) if parsed.table else None
    ranks = parsed.ranks or recorded or local_ranks(config)
    stage = stage_of(parsed.config, parsed.overrides, config, ranks, parsed.stage)
    path = calibration_path(parsed.calibration)
    if parsed.calibrate:
        calibration.write_calibration(path, calibration.calibrate(ranks))
        print(f"tune: written: {path}", flush=True)
    known = None
    if not parsed.slurm and (path.exists() or parsed.calibration):
        known = calibration.read_calibration(path)
    device = device_of(parsed.device, known, ranks)
    if parsed.table:
        sweep = read_sweep(stage)
        return _show(parsed, stage, sweep, device, known)
    found = candidates(stage, _cluster(parsed, ranks, device), parsed.most)
    if parsed.list:
        print("\n".join(_listed(stage, found, device)))
        return 0
    sweep = write_sweep(stage, found, parsed.steps, parsed.most)
    if parsed.slurm:
        submit, script = shlex.split(write_array(sweep, []))
        options = [f"--nodes={parsed.nodes}", f"--ntasks-per-node={ranks // parsed.nodes}"]
        print(shlex.join([submit, *options, script]))
        return 0
    return _run(parsed, stage, sweep, device, known)


def _check_ranks(parsed: argparse.Namespace) -> None:
    if parsed.slurm:
        if parsed.ranks is None:
            raise UserError(
                "--slurm: found no --ranks, wanted the ranks of a job, for which grids are made; add it, and --nodes"
            )
        if parsed.calibrate:
            raise UserError(
                "--calibrate: found it with --slurm, wanted one of them: it measures this machine, not those of jobs"
            )
        if parsed.device == "this":
            raise UserError("--device: found this with --slurm, wanted the jobs' device, as h200, or none")
    elif parsed.nodes != 1 and not (parsed.list or parsed.table):
        raise UserError(
            f"--nodes: found {parsed.nodes} without --slurm, wanted 1: runs start on this machine; add --slurm"
        )
    elif (parsed.ranks or 1) > MOST_LOCAL_RANKS and not (parsed.list or parsed.table):
        raise UserError(
            f"--ranks: found {parsed.ranks:,}, wanted at most {MOST_LOCAL_RANKS:,} on one machine; add --slurm"
        )
    if parsed.ranks is not None and parsed.ranks % parsed.nodes:
        raise UserError(f"--ranks: found {parsed.ranks}, wanted a multiple of --nodes {parsed.nodes}")


def _cluster(parsed: argparse.Namespace, ranks: int, device: Device | None) -> Any:
    """What grids are weighed by. Where no device is known, an H200 orders them, and none is too large."""
    from hyena_ds.cost.devices import Cluster, published_device

    if device is None:
        device = replace(published_device("h200"), memory=float("inf"))
    return Cluster(parsed.nodes, ranks // parsed.nodes, device)


def _run(
    parsed: argparse.Namespace, stage: Stage, sweep: Sweep, device: Device | None, known: dict[str, Any] | None
) -> int:
    from hyena_ds.sweeps.runner import run_all

    code = run_all(sweep.runs, len(sweep.runs), ("tune", "train"))
    shown = _show(parsed, stage, sweep, device, known)
    return code if code in STOPPED_CODES else shown


def _show(
    parsed: argparse.Namespace, stage: Stage, sweep: Sweep, device: Device | None, known: dict[str, Any] | None
) -> int:
    """Print the table and what follows from it; 1 where no grid has numbers."""
    from hyena_ds.planning.command import calibration_path
    from hyena_ds.sweeps.grids import settings_of
    from hyena_ds.sweeps.measured import add_to_calibration, best_of, measured_of, said_of_best, table
    from hyena_ds.sweeps.results import write_csv

    rows = measured_of(sweep, stage.ranks, device)
    own = stage.shape(device is not None and device.on_cpu)
    print("\n".join(["", *table(rows, own), "", *said_of_best(rows, own)]))
    best = best_of(rows)
    if best is not None:
        print(f"settings of the best: {settings_of(stage, best.shape)}")
    print(f"written: {write_csv(sweep, [row.row() for row in rows])}")
    if best is None:
        return 1
    path = calibration_path(parsed.calibration)
    if known is None:
        print(f"plan has no calibration of this machine ({path}), so it learns nothing: --calibrate measures it first")
    else:
        print("\n".join(add_to_calibration(path, known, rows)))
    return 0


def _listed(stage: Stage, found: list[Prediction], device: Device | None) -> list[str]:
    from hyena_ds.sweeps.grids import settings_of
    from hyena_ds.sweeps.measured import grid, predicted
    from hyena_ds.text import aligned

    cells = [["", "grid", "batch", "policy", "predicted s", "predicted GiB", "settings"]]
    for each in found:
        shown = predicted(None if device is None else each)
        mark = "yours" if each is found[0] else ""
        cells.append([mark, *grid(each.shape), *shown, settings_of(stage, each.shape)])
    basis = "no device is known, so an H200's data sheet orders them, and none is left out for its memory"
    if device is not None:
        basis = f"predicted for {device.name}: {device.source}"
    return [f"stage {stage.plan.number} on {stage.ranks:,} ranks; {basis}", *aligned(cells, left=(0, 1, 2, 3, 6))]
