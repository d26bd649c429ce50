"""`hyena-ds plan`: what a run needs on machines that it has not seen, and how it scales on paper. Predicting takes no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_ds.bench.command import Commands, add_measurement, add_option
from hyena_ds.config.limits import MOST_RANKS, check_count, whole_number
from hyena_ds.errors import UserError

if TYPE_CHECKING:
    from hyena_ds.config.schema import RunConfig

_DEFAULT_DEVICES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds plan`."""
    parser.add_argument("config", help="YAML file of a whole run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting for this plan")
    add_option(parser, "--nodes", 1, "machines", type=whole_number)
    devices: dict[str, Any] = {
        "shown": f"{_DEFAULT_DEVICES}; of this one, as many as it would start",
        "type": whole_number,
    }
    add_option(parser, "--devices-per-node", None, "ranks of a machine", **devices)
    add_option(parser, "--device", "h200", "b200, h200, h100, a100, a100-40gb, l40s or this")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, about 5 minutes")
    cache: dict[str, Any] = {"shown": "the user's cache", "metavar": "FILE"}
    add_option(parser, "--calibration", None, "where its measurement is kept", **cache)
    text = "print a scaling study of its model, as in bench/scaling.md"
    parser.add_argument("--scaling", action="store_true", help=text)
    parser.add_argument("--plot", metavar="PNG", help="with --scaling: also draw it")
    parser.set_defaults(run=run)


def add_plan_measurement(commands: Commands) -> None:
    """Add `plan` to the sub-commands of `hyena-ds bench`: what is predicted for this machine beside what is measured."""
    plan = commands.add_parser("plan", help="what `hyena-ds plan` predicts beside what is measured here")
    lengths = [1 << exponent for exponent in range(10, 21, 2)]
    add_option(plan, "--context-length", lengths, "rows to measure", shown="all")
    add_option(plan, "--sequence-parallel", [1, 2, 4], "ranks of a row")
    text = "of this machine; measured first where there is none"
    plan.add_argument("--calibration", metavar="FILE", required=True, help=text)
    add_measurement(plan, "hyena_ds.planning.accuracy")


def run(parsed: argparse.Namespace) -> int:
    """The exit code: 0 when every stage fits, else 1."""
    from hyena_ds.tasks.deriving import load_run

    if parsed.plot is not None and not parsed.scaling:
        raise UserError("--plot: wanted --scaling with it, whose image it writes")
    config = load_run(parsed.config, parsed.overrides)
    return _scaling(parsed, config) if parsed.scaling else _plan(parsed, config)


def _scaling(parsed: argparse.Namespace, config: RunConfig) -> int:
    from hyena_ds.cost.devices import published_device
    from hyena_ds.planning.scaling import draw, study, study_page

    found = study(config, published_device(parsed.device))
    print(study_page(found), end="")
    if parsed.plot is not None:
        draw(found, parsed.plot)
    return 0


def calibration_path(named: str | None) -> Path:
    """What --calibration names, else the file in the user's cache."""
    from hyena_ds.cost.efficiency import calibration_file

    return Path(named).expanduser() if named else calibration_file()


def _plan(parsed: argparse.Namespace, config: RunConfig) -> int:
    from hyena_ds.config.names import check_new_name
    from hyena_ds.cost.devices import Cluster, published_device
    from hyena_ds.planning import calibration
    from hyena_ds.planning.forecast import forecast
    from hyena_ds.planning.report import describe_plan
    from hyena_ds.runs.directory import RunDirectory

    path = calibration_path(parsed.calibration)
    check_new_name(config.name, RunDirectory(config).config_file, "name")
    check_count("--nodes", parsed.nodes, MOST_RANKS)
    check_count("--devices-per-node", parsed.devices_per_node, MOST_RANKS)
    here = parsed.device == "this" or parsed.calibrate
    devices = parsed.devices_per_node
    if devices is None and here:
        devices = config.local_ranks or config.widest_sequence_parallel
    devices = devices or _DEFAULT_DEVICES
    check_count("--nodes x --devices-per-node", parsed.nodes * devices, MOST_RANKS)
    if parsed.calibrate:
        if parsed.device not in ("this", "h200"):
            raise UserError(
                f"--device: found {parsed.device} with --calibrate, which measures this machine; wanted this"
            )
        calibration.write_calibration(path, calibration.calibrate(devices))
        print(f"written: {path}", file=sys.stderr)
    if here:
        device = calibration.machine_device(calibration.read_calibration(path), devices)
    else:
        device = published_device(parsed.device)
    cluster = Cluster(parsed.nodes, devices, device)
    forecasts = forecast(config, cluster)
    print("\n".join(describe_plan(config, cluster, forecasts)))
    return 0 if all(found.prediction.fits for found in forecasts) else 1
