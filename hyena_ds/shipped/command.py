"""`hyena-ds init DIR`, which writes what a first run needs, and `hyena-ds launch`, which says where the launch scripts are."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError, in_one_line
from hyena_ds.files.whole import aside, to_disk
from hyena_ds.shipped import launch_script, shipped

CONTENT = {"configs": ("*.yaml", "*/*.yaml", "*/*.bed"), "assets": ("*.fa.gz", "README.md", "hyenadna-chrx/*.*")}
"""What `init` copies: patterns of files, by their directory."""
_FIRST_RUN = (
    "hyena-ds check configs/quickstart.yaml",
    "hyena-ds prep build configs/prep/quickstart.yaml",
    "hyena-ds train configs/quickstart.yaml",
    "hyena-ds report runs/quickstart",
)


def add_commands(commands: Any) -> None:
    """Add both commands to argparse's sub-commands; each sets `run`, a function of the parsed arguments."""
    init = commands.add_parser(
        "init", help="write configs, the quick start's genome and a trained model into a new directory"
    )
    init.add_argument("directory", metavar="DIR", help="a directory that does not exist yet")
    init.set_defaults(run=_init)
    launch = commands.add_parser("launch", help="print where the launch scripts are, or one of them")
    launch.add_argument("script", nargs="?", help="a script's name, as in: bash $(hyena-ds launch hostfile.sh)")
    launch.set_defaults(run=_launch)


def write_start(directory: Path) -> None:
    """Write configs, genome and the trained model to a new directory, which is whole or not there. Raises UserError where there is something."""
    if os.path.lexists(directory):
        raise UserError(
            f"{directory}: exists already, and nothing is overwritten; name a directory that does not exist yet"
        )
    if not directory.parent.is_dir():
        raise UserError(f"{directory}: found no directory {directory.parent} to write it to; make it first")
    with aside(directory) as partial:
        for name, patterns in CONTENT.items():
            source = shipped(name)
            for path in (path for pattern in patterns for path in sorted(source.glob(pattern))):
                target = partial / name / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                with path.open("rb") as original, target.open("wb") as copy:
                    shutil.copyfileobj(original, copy)
                    to_disk(copy)


def _init(parsed: argparse.Namespace) -> int:
    directory = Path(parsed.directory)
    write_start(directory)
    given = str(directory)
    change = shlex.join(["cd", f"./{given}" if given.startswith("-") else given])
    print(f"written: {in_one_line(given)}, with the first 2.3 Mb of hg38's chr2 and configs. To train on it:\n")
    print("\n".join(f"    {command}" for command in (change, *_FIRST_RUN)))
    print("\nconfigs/prep has other genomes; `hyena-ds launch` says where the scripts for clusters are.")
    return 0


def _launch(parsed: argparse.Namespace) -> int:
    print(shipped("launch") if parsed.script is None else launch_script(parsed.script))
    return 0
