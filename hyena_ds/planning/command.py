"""`hyena-ds plan`: what a run needs on machines that it has not seen, and how it scales on paper. Predicting takes no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hyena_ds.bench.command import Commands, add_json, measurement
from hyena_ds.config.limits import MOST_RANKS, check_count, whole_number
from hyena_ds.errors import UserError

_DEFAULT_DEVICES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds plan`."""
    parser.add_argument("config", help="YAML file of a whole run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a setting for this plan")
    parser.add_argument("--nodes", type=whole_number, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--devices-per-node",
        type=whole_number,
        help="ranks of a machine (default: 8; of this one, as many as it would start)",
    )
    parser.add_argument(
        "--device", default="h200", help="b200, h200, h100, a100, a100-40gb, l40s or this (default: h200)"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, about 5 minutes")
    parser.add_argument(
        "--calibration", metavar="FILE", help="where its measurement is kept (default: the user's cache)"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="print a scaling study of its model, as in bench/scaling.md"
    )
    parser.add_argument("--plot", metavar="PNG", help="with --scaling: also draw it")
    parser.set_defaults(run=run)


def add_measurement(commands: Commands) -> None:
    """Add `plan` to the sub-commands of `hyena-ds bench`: what is predicted for this machine beside what is measured."""
    plan = commands.add_parser("plan", help="what `hyena-ds plan` predicts beside what is measured here")
    lengths = [1 << exponent for exponent in range(10, 21, 2)]
    plan.add_argument("--context-length", type=int, nargs="+", default=lengths, help="rows to measure (default: all)")
    plan.add_argument(
        "--sequence-parallel", type=int, nargs="+", default=[1, 2, 4], help="ranks of a row (default: 1 2 4)"
    )
    plan.add_argument(
        "--calibration", metavar="FILE", required=True, help="of this machine; measured first where there is none"
    )
    add_json(plan)
    plan.set_defaults(run=measurement("hyena_ds.planning.accuracy"), rounds=1)


def run(parsed: argparse.Namespace) -> int:
    """The exit code: 0 when every stage fits, else 1."""
    from hyena_ds.cost.devices import published_device

    if parsed.plot is not None and not parsed.scaling:
        raise UserError("--plot: wanted --scaling with it, whose image it writes")
    if parsed.scaling:
        from hyena_ds.config.loading import load_yaml
        from hyena_ds.config.schema import RunConfig
        from hyena_ds.planning.scaling import draw, study, study_lines

        found = study(load_yaml(parsed.config, RunConfig, parsed.overrides), published_device(parsed.device))
        print("\n".join(study_lines(found)))
        if parsed.plot is not None:
            draw(found, parsed.plot)
        return 0
    return _plan(parsed)


def _plan(parsed: argparse.Namespace) -> int:
    from hyena_ds.config.loading import load_yaml
    from hyena_ds.config.names import check_new_name
    from hyena_ds.config.schema import RunConfig
    from hyena_ds.cost.devices import Cluster, published_device
    from hyena_ds.planning.calibration import (
        calibrate,
        default_path,
        machine_device,
        read_calibration,
        write_calibration,
    )
    from hyena_ds.planning.plan import forecast
    from hyena_ds.planning.report import describe_plan
    from hyena_ds.runs.directory import RunDirectory

    path = Path(parsed.calibration).expanduser() if parsed.calibration else default_path()
    config = load_yaml(parsed.config, RunConfig, parsed.overrides)
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
        write_calibration(path, calibrate(devices))
        print(f"written: {path}", file=sys.stderr)
    device = machine_device(read_calibration(path), devices) if here else published_device(parsed.device)
    cluster = Cluster(parsed.nodes, devices, device)
    forecasts = forecast(config, cluster)
    print("\n".join(describe_plan(config, cluster, forecasts)))
    return 0 if all(found.prediction.fits for found in forecasts) else 1
