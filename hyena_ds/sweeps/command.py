"""`hyena-ds sweep SWEEP.yaml`: run it, list it, collect its results, or hand it to Slurm. Takes no torch."""

from __future__ import annotations

import argparse
import shlex

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.errors import UserError, in_one_line
from hyena_ds.sweeps.plan import Sweep, SweepRun, load_sweep
from hyena_ds.sweeps.results import rows_of, table, write_csv
from hyena_ds.sweeps.runner import run_all
from hyena_ds.sweeps.slurm import write_array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds sweep`; `run` is a function of the parsed arguments."""
    parser.add_argument("sweep", help="YAML file of a sweep, for instance configs/sweeps/contexts.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting of all runs")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--list", action="store_true", help="print the runs, and start none")
    way.add_argument("--only", metavar="N", help="start one run: its number from 0, or its name")
    way.add_argument("--arguments", metavar="N", help="print config and overrides of a run, quoted for a shell")
    way.add_argument("--table", action="store_true", help="collect the results there are: table, CSV and plot")
    way.add_argument(
        "--slurm", action="store_true", help="write the script of a Slurm job array, and print how to submit it"
    )
    parser.set_defaults(run=_sweep)


def _sweep(parsed: argparse.Namespace) -> int:
    sweep = load_sweep(parsed.sweep, parsed.overrides)
    if parsed.list:
        print("\n".join(_listed(sweep)))
    elif parsed.arguments is not None:
        chosen = _chosen(sweep, parsed.arguments)
        chosen.check_secrets()
        print(shlex.join(chosen.arguments))
    elif parsed.slurm:
        print(write_array(sweep, parsed.overrides))
    elif parsed.table:
        _collect(sweep)
    else:
        return _run(sweep, parsed.only)
    return 0


def _run(sweep: Sweep, only: str | None) -> int:
    runs = sweep.runs if only is None else (_chosen(sweep, only),)
    for run in runs:  # does each fit the number of processes that it asks for?
        try:
            if run.config.local_ranks is not None:
                plan_stages(run.config, run.config.local_ranks)
        except UserError as error:
            raise UserError(f"{sweep.file}: run {run.name}: {error}") from None
    code = run_all(runs, len(sweep.runs))
    if only is None:
        _collect(sweep)
    return code


def _chosen(sweep: Sweep, wanted: str) -> SweepRun:
    known = {run.name: run for run in sweep.runs}
    known |= {str(run.number): run for run in sweep.runs}  # goes before a name: a task of an array is a number
    if wanted in known:
        return known[wanted]
    raise UserError(
        f"{sweep.file}: found no run '{wanted}', wanted 0 to {len(sweep.runs) - 1} or a name; --list prints them"
    )


def _listed(sweep: Sweep) -> list[str]:
    lines = [f"{sweep.config.name}: {len(sweep.runs)} runs in {sweep.directory}"]
    for run, row in zip(sweep.runs, rows_of(sweep), strict=True):
        what = ", ".join(f"{key}={value}" for key, value in run.varied.items())
        amount = f"{run.config.total_steps:,} steps, {run.config.total_tokens:,} tokens"
        lines.append(f"{run.number:>3}  {run.name}  {amount}  {row['status']}  ({what})")
    return [in_one_line(line) for line in lines]


def _collect(sweep: Sweep) -> None:
    from hyena_ds.sweeps import curves, plot

    rows = rows_of(sweep)
    print("\n".join(["", *table(rows), ""]))
    tested = any(run.config.task for run in sweep.runs)
    if tested:
        print("\n".join([*curves.table(sweep, rows), ""]))
    print(f"written: {write_csv(sweep, rows)}")
    try:
        print(f"written: {(curves.plot if tested else plot.plot)(sweep, rows)}")
    except UserError as error:
        print(f"no plot: {error}")
