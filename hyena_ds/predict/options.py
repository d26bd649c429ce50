"""What every verb that uses a model is told alike: the model, where results go, ranks, context, batch and precision.

    parser --add_options--> parsed --options_of, checked--> Options

Takes no torch: a wrong option is said at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.config.limits import MOST_CONTEXT, MOST_LOCAL_RANKS, MOST_SEQUENCES, check_count, whole_number
from hyena_ds.errors import UserError

PRECISIONS = ("float32", "bfloat16")
MODEL = "run, checkpoint, weights file, or published or Hugging Face folder"


@dataclass(frozen=True)
class Options:
    """Checked options of one command."""

    model: Path
    """A weights file, a checkpoint, a run, or a published or Hugging Face folder."""
    output: Path
    """File that the results go to."""
    context: int | None
    """Most bases that one forward pass looks at; None: the verb's own choice."""
    batch: int | None
    """Sequences of a forward pass; None: as many as make passes of about the same size."""
    ranks: int
    """Processes."""
    sequence_parallel: int
    """Processes that share a sequence."""
    precision: str
    """Arithmetic of projections and MLP: float32 or bfloat16."""
    shift: float | None
    """The filter's shift; None: what the weights say, else what predicts a real sequence better."""
    json: Path | None
    """File for a summary of the run."""
    resume: bool
    """Take results that are complete as they are, instead of refusing to write over them."""
    overwrite: bool
    """Begin again, whatever is there."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, and how its weights are read, to a verb's parser."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--shift",
        type=float,
        metavar="S",
        help="the filter's shift: 0.05 in the published inference code, 0 in the training code (default: what the weights "
        "say, else what predicts a real sequence better)",
    )


def add_options(
    parser: argparse.ArgumentParser,
    output: str,
    output_is_required: bool = True,
    batch: str = "sequences of a pass (default: by their length)",
) -> None:
    """Add the model and the options of `Options` to a verb's parser; `output` and `batch` are the help of these options."""
    add_model(parser)
    parser.add_argument("--output", required=output_is_required, metavar="PATH", help=output)
    parser.add_argument(
        "--context",
        type=whole_number,
        metavar="N",
        help="most bases that a pass looks at (default: the model's maximum)",
    )
    parser.add_argument("--batch", type=whole_number, metavar="N", help=batch)
    parser.add_argument("--ranks", type=whole_number, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--sequence-parallel",
        type=whole_number,
        default=1,
        metavar="P",
        help="processes that share a sequence (default: 1)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="arithmetic of projections and MLP (default: float32)",
    )
    parser.add_argument("--json", metavar="PATH", help="write a summary: counts, settings, speed, memory")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on where an earlier command stopped (the default), and leave whole results",
    )
    again.add_argument("--overwrite", action="store_true", help="begin again, whatever is there")


def add_assembly(parser: argparse.ArgumentParser) -> None:
    """Add `--assembly`, for verbs that say which bases a model was trained on."""
    parser.add_argument("--assembly", metavar="NAME", help="assembly of FASTA, to compare with what was trained on")


def options_of(parsed: argparse.Namespace, suffixes: Sequence[str]) -> Options:
    """The options of a verb whose output ends in one of `suffixes`. Raises UserError."""
    options = Options(
        model=Path(parsed.model),
        output=Path(parsed.output),
        context=parsed.context,
        batch=parsed.batch,
        ranks=parsed.ranks,
        sequence_parallel=parsed.sequence_parallel,
        precision=parsed.precision,
        shift=parsed.shift,
        json=None if parsed.json is None else Path(parsed.json),
        resume=parsed.resume,
        overwrite=parsed.overwrite,
    )
    check_count("--context", options.context, MOST_CONTEXT)
    check_count("--batch", options.batch, MOST_SEQUENCES)
    check_count("--ranks", options.ranks, MOST_LOCAL_RANKS)
    check_count("--sequence-parallel", options.sequence_parallel, MOST_LOCAL_RANKS)
    if options.ranks % options.sequence_parallel:
        raise UserError(
            f"--sequence-parallel: found {options.sequence_parallel}, wanted a divisor of --ranks {options.ranks}"
        )
    check_model(options.model)
    check_output(options.output, suffixes, "--output")
    if options.json is not None:
        check_output(options.json, ("",), "--json")
    return options


def check_model(path: Path) -> None:
    """Raise UserError where there is nothing at `path`."""
    if not path.exists():
        raise UserError(f"{path}: no such model; name a run, a checkpoint, a weights file or a folder with one")


def check_output(path: Path, suffixes: Sequence[str], option: str) -> None:
    """Raise UserError unless `path` ends in one of `suffixes`, in a directory that exists."""
    if not path.name.endswith(tuple(suffixes)):
        raise UserError(f"{option}: found '{path}', wanted a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{option}: {path.parent}: no such directory; make it first")
