"""Which species a window is of: windows of several genomes, as many of each, on both strands.

FASTA of each species --windows side by side, few of them N--> blocks by place --as many of each species--> splits
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data_prep.recipes.examples import SPLITS, Example, Made, part
from data_prep.recipes.options import add_split, drawn, rule_from
from data_prep.recipes.sequences import Reference, opened
from data_prep.recipes.splitting import Rule, Span
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

INPUTS = ("genome",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hyena-ds prep task species` takes."""
    parser.add_argument(
        "--genome",
        required=True,
        action="append",
        metavar="SPECIES=FASTA",
        help="a species and its sequences; once for each of two species or more",
    )
    parser.add_argument(
        "--window", type=int, default=1024, metavar="BASES", help="length of a sequence (default: 1024)"
    )
    parser.add_argument(
        "--most", type=int, default=2000, metavar="N", help="train windows of a species, at most (default: 2000)"
    )
    parser.add_argument(
        "--most-n", type=float, default=0.05, metavar="SHARE", help="N that a window may have (default: 0.05)"
    )
    add_split(parser, "the window")


def make(args: argparse.Namespace, work: Path) -> Made:
    """The task, from the genome of each species. Raises UserError."""
    rule = rule_from(args, args.window)
    if args.most < 1:
        raise UserError(f"--most: found {args.most}, wanted at least 1")
    if not 0 <= args.most_n < 1:
        raise UserError(f"--most-n: found {args.most_n}, wanted a share from 0 to below 1")
    left_out: Counter[str] = Counter()
    named = _named(args.genome)
    with ExitStack() as stack:
        references = {
            species: stack.enter_context(opened(Path(path), work / str(number)))
            for number, (species, path) in enumerate(named.items())
        }
        contigs = {contig for reference in references.values() for contig in reference.lengths}
        for option, spans in (("--valid", rule.valid), ("--test", rule.test)):
            for span in spans:
                if span.contig not in contigs:
                    raise UserError(f"{option}: found the contig '{span.contig}', which no genome has")
        places = {}
        for species, reference in references.items():
            rows = _windows(species, reference, args, left_out)
            middles = [(row.start + row.end) // 2 for row in rows]
            places[species] = part(rows, middles, _of(rule, {row.contig for row in rows}), left_out)
        splits = {split: _as_many(split, places, rule, named, args, left_out) for split in SPLITS}
        for rows in splits.values():
            rows[:] = [_filled(references[row.label], row) for row in rows]
    return Made(
        "classification",
        splits,
        rule.describe("the windows of each species"),
        "the species, as the command names it",
        "either",
        left_out=+left_out,
        notes=(
            f"Windows lie side by side; those with more than {args.most_n:.0%} N are left out. Half of them are read on the "
            "reverse strand. All letters are capitals, or soft-masking would tell the assemblies apart.",
        ),
    )


def _named(words: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for word in words:
        species, separator, path = word.partition("=")
        if not (species and separator and path) or species in named:
            raise UserError(
                f"--genome: found '{in_one_line(word, MOST_QUOTED)}', wanted SPECIES=FASTA, each species once"
            )
        named[species] = path
    if len(named) < 2:
        raise UserError("--genome: found one species, wanted two or more")
    return named


def _of(rule: Rule, contigs: set[str]) -> Rule:
    """The rule without regions of contigs that other species have."""

    def mine(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(span for span in spans if span.contig in contigs)

    return Rule(rule.gap, mine(rule.valid), mine(rule.test), rule.valid_share, rule.test_share)


def _as_many(
    split: str,
    places: dict[str, dict[str, list[Example]]],
    rule: Rule,
    named: dict[str, str],
    args: argparse.Namespace,
    left_out: Counter[str],
) -> list[Example]:
    """Windows of a split, as many of each species. Raises UserError where one has none."""
    train = 1 - rule.valid_share - rule.test_share
    share = {"train": train, "valid": rule.valid_share, "test": rule.test_share}[split]
    least = min(max(1, round(args.most * share / train)), *(len(found[split]) for found in places.values()))
    chosen = []
    for species, found in places.items():
        if least == 0 and not found[split]:
            raise UserError(
                f"{named[species]}: found no window of {args.window:,} bases for {split}, wanted at least one; shorten "
                "--window, or give longer sequences"
            )
        order = drawn(np.arange(len(found[split])), args.seed, species, split)[:least]
        chosen += [found[split][index] for index in sorted(order.tolist())]
        left_out["more than another species has, or than --most"] += len(found[split]) - least
    return chosen


def _windows(species: str, reference: Reference, args: argparse.Namespace, left_out: Counter[str]) -> list[Example]:
    """Every window of a species, still without its sequence: a genome's would not fit into memory."""
    rows = []
    for contig, length in reference.lengths.items():
        count = length // args.window
        turned = set(drawn(np.arange(count), args.seed, species, contig)[: count // 2].tolist())
        for index in range(count):
            start, end = index * args.window, (index + 1) * args.window
            if np.count_nonzero(reference.letters(contig, start, end) == ord("N")) > args.most_n * args.window:
                left_out["too many N"] += 1
            else:
                rows.append(Example("", species, contig, start, end, "-" if index in turned else "+"))
    return rows


def _filled(reference: Reference, row: Example) -> Example:
    """A window with its sequence, and with its species before the name of its contig: genomes call theirs alike."""
    sequence = reference.window(row.contig, row.start, row.end, row.strand) or ""
    return dataclasses.replace(row, sequence=sequence, contig=f"{row.label}:{row.contig}")
