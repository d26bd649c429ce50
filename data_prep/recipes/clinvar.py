"""What a variant does: the window round it with ALT in place, in a second column with REF, and its label.

    VCF --INFO key--> labelled variants    genome --REF checked--> window --ALT in place--> sequence

Position and REF of a VCF count from 1. Sequences with REF and with ALT are of one length, also where the alleles are not: what
follows on the right makes up for it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.recipes.examples import Example, Made, part
from data_prep.recipes.options import add_split, rule_from
from data_prep.recipes.reading import read_lines, whole_number
from data_prep.recipes.sequences import Reference, most_contig, opened
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

INPUTS = ("variants", "genome")
_BASES = re.compile("[ACGT]+")


@dataclass(frozen=True, slots=True)
class Variant:
    """One ALT of a record."""

    where: str
    contig: str
    start: int
    reference: str
    alternative: str
    label: str
    group: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task clinvar` takes."""
    parser.add_argument(
        "--variants", required=True, metavar="VCF", help="plain or gzip, with the label in a key of INFO"
    )
    parser.add_argument("--genome", required=True, metavar="FASTA", help="the assembly of the VCF")
    parser.add_argument("--label", default="LABEL", metavar="KEY", help="INFO key of the label (default: LABEL)")
    parser.add_argument(
        "--classes",
        default="benign,pathogenic",
        metavar="A,B",
        help="values of the label that are classes; other records are left out (default: benign,pathogenic)",
    )
    parser.add_argument("--group", default="GENE", metavar="KEY", help="INFO key of the column group (default: GENE)")
    parser.add_argument(
        "--window", type=int, default=1024, metavar="BASES", help="length of a sequence (default: 1024)"
    )
    add_split(parser, "the window")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from a VCF and a genome. Raises UserError."""
    rule = rule_from(args, args.window)
    classes = [word for word in args.classes.split(",") if word]
    if len(set(classes)) < 2:
        raise UserError(f"--classes: found '{args.classes}', wanted two values or more, with commas between")
    left_out: Counter[str] = Counter()
    variants = list(_read(Path(args.variants), args.label, args.group, set(classes), left_out))
    if not variants:
        raise UserError(f"{args.variants}: found no record with {args.label} {' or '.join(classes)}, wanted some")
    with opened(Path(args.genome), work / "genome") as reference:
        names = most_contig(reference, {variant.contig for variant in variants}, Path(args.variants))
        rows = []
        for variant in variants:
            contig = names.get(variant.contig)
            row = None if contig is None else _row(reference, contig, variant, args.window)
            if row is None:
                left_out["the genome does not have its window"] += 1
            else:
                rows.append(row)
    splits = part(rows, [(row.start + row.end) // 2 for row in rows], rule, left_out)
    return Made(
        "classification",
        splits,
        rule.describe("variants"),
        f"what {args.label} says of the variant",
        "either",
        more=("reference",),
        left_out=+left_out,
        notes=(
            f"The variant begins at base {args.window // 2} (0-based) of `sequence`, which has ALT, and of `reference`, which "
            "has REF. Variants near each other share most of their windows, within a split.",
        ),
    )


def _read(path: Path, key: str, group: str, classes: set[str], left_out: Counter[str]) -> Iterator[Variant]:
    for number, line in read_lines(path):
        where, cells = f"{path}:{number}", line.split("\t")
        if len(cells) < 8:
            raise UserError(f"{where}: found {len(cells)} columns, wanted the 8 or more of a VCF")
        contig, position, _, reference, alternatives = cells[:5]
        info = dict(field.partition("=")[::2] for field in cells[7].split(";"))
        if info.get(key) not in classes:
            left_out[f"no {key} of the classes"] += 1
            continue
        start = whole_number(where, position) - 1
        for alternative in alternatives.upper().split(","):
            if _BASES.fullmatch(reference.upper()) and _BASES.fullmatch(alternative):
                yield Variant(where, contig, start, reference.upper(), alternative, info[key], info.get(group, ""))
            else:
                left_out["REF or ALT with other letters than A C G T"] += 1


def _row(reference: Reference, contig: str, variant: Variant, window: int) -> Example | None:
    """The variant's row; None where its contig does not reach far enough."""
    start = variant.start - window // 2
    longest = max(len(variant.reference) - len(variant.alternative), 0) + window
    around = reference.window(contig, start, start + longest, "+")
    if around is None or len(variant.reference) > window // 2 or len(variant.alternative) > window // 2:
        return None
    left, right = around[: window // 2], around[window // 2 :]
    if not right.startswith(variant.reference):
        found = right[: len(variant.reference)]
        raise UserError(
            f"{variant.where}: found REF {in_one_line(variant.reference, MOST_QUOTED)} where {reference.source} has "
            f"{in_one_line(found, MOST_QUOTED)}; is the VCF of another assembly?"
        )
    changed = (left + variant.alternative + right[len(variant.reference) :])[:window]
    return Example(changed, variant.label, contig, start, start + longest, "+", variant.group, (around[:window],))
