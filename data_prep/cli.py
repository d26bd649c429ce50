"""The sub-commands of `hyena-ds prep`.

build CONFIG [key.path=value ...]      FASTA -> shards; resumes an interrupted build
verify CONFIG [key.path=value ...]     shards against the FASTA, base by base
download CONFIG|NAME [...]             a named assembly, with resume and checksum
task NAME ... OUT                      labelled sequences, with splits, from sequences and annotations
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.config import load_config
from data_prep.recipes.command import add_arguments as add_task_arguments

DOWNLOADS = "data/genomes"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `hyena-ds prep`; each sets `run`, a function of the parsed arguments."""
    commands = parser.add_subparsers(dest="prep_command", required=True, metavar="COMMAND")
    for name, what in (
        ("build", "write shards from a FASTA; run it again to resume"),
        ("verify", "compare shards with the FASTA, base by base"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=_run)
        command.add_argument("config", metavar="CONFIG", help="a YAML file such as configs/prep/quickstart.yaml")
        command.add_argument("overrides", metavar="key.path=value", nargs="*", help="replaces a value of the config")
    download = commands.add_parser("download", help="fetch a named assembly, with resume and checksum")
    download.add_argument("source", metavar="CONFIG-or-NAME", help="a config with the key 'download', or hg38, hs1")
    download.add_argument("overrides", metavar="key.path=value", nargs="*", help="replaces a value of the config")
    download.add_argument("--directory", default=DOWNLOADS, help=f"where a NAME goes (default: {DOWNLOADS})")
    download.set_defaults(run=_download)
    add_task_arguments(commands.add_parser("task", help="make a labelled task from sequences and annotations"))


def _run(args: argparse.Namespace) -> int:
    from data_prep.build import build
    from data_prep.verify import verify

    run = build if args.prep_command == "build" else verify
    print(run(load_config(args.config, args.overrides), args.config))
    return 0


def _download(args: argparse.Namespace) -> int:
    from data_prep.download import ASSEMBLIES, download, download_named
    from hyena_ds.errors import UserError

    if Path(args.source).suffix in (".yaml", ".yml") or Path(args.source).is_file():
        print(download(load_config(args.source, args.overrides), args.source))
    elif args.source in ASSEMBLIES:
        if args.overrides:
            raise UserError(
                f"{args.source}: found overrides beside a name, wanted them beside a config; use --directory"
            )
        print(download_named(args.source, Path(args.directory)))
    else:
        raise UserError(f"{args.source}: found neither a config nor an assembly, wanted {' or '.join(ASSEMBLIES)}")
    return 0
