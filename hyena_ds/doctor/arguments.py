"""The arguments of `hyena-ds doctor`. Building the parser imports nothing else."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds doctor` takes; sets `run`, a function of the parsed arguments."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="HOSTFILE | key.path=value",
        help="a DeepSpeed hostfile (lines NAME slots=RANKS; without one, this machine), and changes to the config",
    )
    parser.add_argument("--config", help="YAML file of the run that is to start there: its shards, disk and model")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="limit of the shards' checksums, and of the ranks (default: 300)"
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts for programs")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from hyena_ds.doctor.command import run

    return run(parsed)
