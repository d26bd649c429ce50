"""How strongly a short sequence splices, or any other number that was measured of many sequences of one length.

    table --one row a sequence--> rows    some sequences --their neighbours--> held out, and a moat round them

Such libraries hold nearly every sequence of their length, so a split at random leaves each held-out one a neighbour with a
single letter changed in train. Here whole neighbourhoods are held out: all sequences within `radius` letters of a few centres, and
what is nearer than `apart` letters to them is left out. Centres are drawn by the seed.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.recipes.examples import SPLITS, Example, Made
from data_prep.recipes.options import Places, check_seed, drawn
from data_prep.recipes.reading import read_table
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.letters import Bytes

INPUTS = ("table",)
_FAR = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task mpsa` takes."""
    parser.add_argument(
        "--table",
        required=True,
        metavar="FILE",
        help="CSV or TSV with a column of sequences (of DNA or RNA, all of one length) and one of numbers",
    )
    parser.add_argument("--sequence", default="x", metavar="COLUMN", help="column of the sequences (default: x)")
    parser.add_argument("--value", default="y", metavar="COLUMN", help="column of the numbers (default: y)")
    parser.add_argument(
        "--centres", type=int, default=4, metavar="N", help="neighbourhoods of a held-out split (default: 4)"
    )
    parser.add_argument(
        "--radius",
        type=int,
        default=2,
        metavar="LETTERS",
        help="letters that differ within a neighbourhood (default: 2)",
    )
    parser.add_argument(
        "--apart",
        type=int,
        default=2,
        metavar="LETTERS",
        help="letters that differ between splits, at least (default: 2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the centres (default: 0)")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from a table. Raises UserError."""
    for option, value in (("--centres", args.centres), ("--radius", args.radius), ("--apart", args.apart)):
        if not 1 <= value <= 1000:
            raise UserError(f"{option}: found {value}, wanted 1 to 1,000")
    check_seed(args.seed)
    rows = _read(Path(args.table), args.sequence, args.value)
    letters = np.array([[*row.sequence.encode()] for row in rows], dtype=np.uint8)
    order = drawn(np.arange(len(rows)), args.seed, "centres")
    to_test = _distances(letters, order[: args.centres])
    far = order[to_test[order] >= 2 * args.radius + args.apart]
    to_valid = _distances(letters, far[: args.centres])
    moat = args.radius + args.apart
    chosen = {
        "test": to_test <= args.radius,
        "valid": (to_valid <= args.radius) & (to_test >= moat),
        "train": (to_valid >= moat) & (to_test >= moat),
    }
    for split in SPLITS:
        if not chosen[split].any():
            raise UserError(
                f"{args.table}: found no sequence for {split} with {args.centres} centres, a radius of {args.radius} and "
                f"{args.apart} letters apart; lower --radius, --centres or --apart"
            )
    splits = {split: [rows[index] for index in np.flatnonzero(chosen[split]).tolist()] for split in SPLITS}
    left_out = Counter(
        {"nearer than the letters apart to a split that is better guarded": len(rows) - sum(map(len, splits.values()))}
    )
    centres = {
        name: ", ".join(rows[index].sequence for index in at[: args.centres].tolist())
        for name, at in (("test", order), ("valid", far))
    }
    return Made(
        "regression",
        splits,
        f"test is every sequence within {args.radius} letters of {centres['test']}; valid the same of {centres['valid']}; train is "
        f"what differs from these centres in {moat} letters or more, so that two splits differ in {args.apart} or more",
        f"the column {args.value} of the table, as it stands there",
        "forward",
        has_places=False,
        left_out=+left_out,
        notes=("U of the table is T here.",),
    )


def _read(path: Path, sequence: str, value: str) -> list[Example]:
    rows: dict[str, Example] = {}
    for row in read_table(path, {"sequence": (sequence,), "value": (value,)}):
        letters = row.values["sequence"].upper().replace("U", "T")
        number = row.values["value"]
        if not letters or set(letters) - set("ACGTN"):
            raise UserError(
                f"{row.where}: found the sequence '{in_one_line(letters, MOST_QUOTED)}', wanted A C G T U N"
            )
        first = next(iter(rows), letters)
        if len(first) != len(letters):
            raise UserError(
                f"{row.where}: found a sequence of {len(letters)} letters after one of {len(first)}, wanted all of one length"
            )
        try:
            finite = math.isfinite(float(number))
        except ValueError:
            finite = False
        if not finite:
            raise UserError(f"{row.where}: found '{in_one_line(number, MOST_QUOTED)}' as {value}, wanted a number")
        if letters in rows:
            raise UserError(
                f"{row.where}: found the sequence {letters} twice, wanted each once; average its values first"
            )
        rows[letters] = Example(letters, number)
    if not rows:
        raise UserError(f"{path}: found no row below the header, wanted some")
    return [*rows.values()]


def _distances(letters: Bytes, centres: Places) -> Places:
    """Letters in which each sequence differs from the nearest centre."""
    nearest = np.full(len(letters), _FAR, dtype=np.int64)
    for centre in centres.tolist():
        nearest = np.minimum(nearest, np.count_nonzero(letters != letters[centre], axis=1))
    return nearest
