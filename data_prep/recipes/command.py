"""`hyena-ds prep task NAME ... OUT`: a labelled task from files at hand.

options --recipe--> Made --writing.py--> OUT        the same command again: nothing to do
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.recipes import biotypes, clinvar, exons, mpsa, species, splice
from data_prep.recipes.examples import Made
from data_prep.recipes.writing import identity, is_there, write


@dataclass(frozen=True)
class Recipe:
    """A way to make a task."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, Path], Made]
    inputs: tuple[str, ...]
    """Options that name files."""


RECIPES = {
    "splice": Recipe(
        "splice donors, acceptors and look-alikes of the same genes",
        splice.add_arguments,
        splice.make,
        splice.INPUTS,
    ),
    "exons": Recipe("exon, intron or neither, for every base", exons.add_arguments, exons.make, exons.INPUTS),
    "biotypes": Recipe("genes by their biotype", biotypes.add_arguments, biotypes.make, biotypes.INPUTS),
    "clinvar": Recipe(
        "windows round labelled variants, with ALT in place", clinvar.add_arguments, clinvar.make, clinvar.INPUTS
    ),
    "mpsa": Recipe(
        "a number measured of many short sequences, split by similarity", mpsa.add_arguments, mpsa.make, mpsa.INPUTS
    ),
    "species": Recipe("windows of several genomes", species.add_arguments, species.make, species.INPUTS),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a sub-command for each recipe; each sets `run`, a function of the parsed arguments."""
    commands = parser.add_subparsers(dest="task_command", required=True, metavar="NAME")
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.help)
        recipe.add_arguments(command)
        options = sorted(action.dest for action in command._actions if action.dest != "help")
        command.add_argument("out", metavar="OUT", help="directory of the task, which this makes")
        command.set_defaults(run=run, options=options)


def run(args: argparse.Namespace) -> int:
    """Make a task, and say what it holds. Raises UserError."""
    recipe, out = RECIPES[args.task_command], Path(args.out)
    inputs: dict[str, Path] = {}
    for name in recipe.inputs:
        value = getattr(args, name)
        if isinstance(value, str):
            inputs[name] = Path(value)
        else:  # several, each with a name of its own
            inputs |= {f"{name}={word.partition('=')[0]}": Path(word.partition("=")[2]) for word in value}
    options = {name: getattr(args, name) for name in args.options if name not in recipe.inputs}
    made_from = identity(args.task_command, options, inputs)
    if is_there(out, made_from):
        print(f"{out} is complete: the same command and inputs made it; nothing to do")
        return 0
    made = write(out, made_from, partial(recipe.make, args))
    for split, counts in made.counts().items():
        classes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if name != "rows")
        print(f"{split}: {counts['rows']:,} rows{f' ({classes})' if classes else ''}")
    for why, count in sorted(made.left_out.items()):
        print(f"left out: {count:,} ({why})")
    print(out)
    return 0
