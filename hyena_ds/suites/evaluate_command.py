"""`hyena-ds evaluate SUITE.yaml`: audit its tasks, run its rows, set them side by side, or hand the runs to Slurm. Takes no torch."""

from __future__ import annotations

import argparse
import shlex

from hyena_ds.config.limits import check_count, whole_number
from hyena_ds.errors import UserError, in_one_line
from hyena_ds.suites.plan import Plan, SuiteRun, load_plan
from hyena_ds.suites.preparing import prepare
from hyena_ds.suites.schema import SuiteTask
from hyena_ds.suites.table import tables_of
from hyena_ds.suites.writing import write_results
from hyena_ds.sweeps.plan import MOST_RUNS
from hyena_ds.sweeps.runner import run_all
from hyena_ds.sweeps.slurm import write_script

_MOST_AT_ONCE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds evaluate`; `run` is a function of the parsed arguments."""
    parser.add_argument("suite", help="YAML file of a suite, for instance configs/suites/here.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting of the suite")
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="start runs of this task, or pattern, alone"
    )
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="start runs of this row alone")
    parser.add_argument(
        "--at-once", type=whole_number, default=1, metavar="N", help="runs at the same time, which share the cores"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--table", action="store_true", help="collect the results there are, and start nothing")
    way.add_argument("--list", action="store_true", help="print the runs, and start none")
    way.add_argument("--arguments", metavar="N", help="print the config of a run, quoted for a shell")
    way.add_argument(
        "--slurm", action="store_true", help="make and audit the tasks here, then write the script of a Slurm job array"
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(parsed: argparse.Namespace) -> int:
    check_count("--at-once", parsed.at_once, _MOST_AT_ONCE)
    plan = load_plan(parsed.suite, parsed.overrides)
    runs = plan.chosen(parsed.task, parsed.row)
    if parsed.list:
        print("\n".join(in_one_line(f"{number:>4}  {run.name}  {run.file}") for number, run in enumerate(runs)))
    elif parsed.arguments is not None:
        print(shlex.join(_numbered(plan, runs, parsed.arguments).arguments))
    elif parsed.table:
        _show(plan)
    elif parsed.slurm:
        return _to_slurm(plan, runs, parsed)
    else:
        return _run(plan, runs, parsed.at_once)
    return 0


def _run(plan: Plan, runs: list[SuiteRun], at_once: int) -> int:
    ready = _ready(plan, runs)
    for run in ready:
        run.write()
    code = run_all(ready, len(plan.runs), ("evaluate", "finetune"), at_once, after=lambda: write_results(plan))
    _show(plan)
    return code or int(len(ready) < len(runs))


def _ready(plan: Plan, runs: list[SuiteRun]) -> list[SuiteRun]:
    """Those of tasks that can be run, once each is made and audited."""
    barred: set[str] = set()
    for task in _tasks(runs):
        print(f"evaluate: {task.name}: making and auditing it", flush=True)
        found = prepare(plan, task)
        if found.error is not None:
            barred.add(task.name)
        print(in_one_line(f"evaluate: {task.name}: {found.error or found.verdict}", 1000), flush=True)
    return [run for run in runs if run.task.name not in barred]


def _tasks(runs: list[SuiteRun]) -> list[SuiteTask]:
    return list({run.task.name: run.task for run in runs}.values())


def _to_slurm(plan: Plan, runs: list[SuiteRun], parsed: argparse.Namespace) -> int:
    import contextlib
    import sys

    if not 0 < len(runs) <= MOST_RUNS:
        raise UserError(
            f"{plan.file}: found {len(runs):,} runs, wanted 1 to {MOST_RUNS:,} in one array; choose some with --task or --row"
        )
    with contextlib.redirect_stdout(sys.stderr):  # the command alone is on stdout
        ready = _ready(plan, runs)
    if len(ready) < len(runs):
        raise UserError(
            f"{plan.file}: found tasks that cannot be run, named above; get their files, or choose others with --task"
        )
    for run in ready:
        run.write()
    words = [plan.file, *parsed.overrides]
    words += [
        word
        for what, names in (("--task", parsed.task), ("--row", parsed.row))
        for name in names
        for word in (what, name)
    ]
    print(write_script("evaluate", words, plan.suite.name, plan.suite.directory, len(runs)))
    return 0


def _numbered(plan: Plan, runs: list[SuiteRun], wanted: str) -> SuiteRun:
    if wanted.isascii() and wanted.isdecimal() and int(wanted) < len(runs):
        return runs[int(wanted)]
    raise UserError(f"{plan.file}: found no run '{wanted}', wanted 0 to {len(runs) - 1}; --list prints them")


def _show(plan: Plan) -> None:
    said, scores = write_results(plan)
    for table in tables_of(plan, scores):
        if table.rows and table.title != "Published":
            print("\n".join(["", table.title, *table.lines()]))
    print("\n".join(["", *said]))
