"""Options that recipes share: how a table counts, what is held out, and how the same places are drawn everywhere."""

from __future__ import annotations

import argparse
import hashlib

import numpy as np
from numpy.typing import NDArray

from data_prep.recipes.reading import Coordinates
from data_prep.recipes.splitting import Rule, parse_regions
from hyena_ds.errors import UserError

Places = NDArray[np.int64]
LONGEST_WINDOW = 1 << 24


def add_coordinates(parser: argparse.ArgumentParser, default: Coordinates) -> None:
    """The option that says how a table counts."""
    parser.add_argument(
        "--coordinates",
        choices=("bed", "ensembl"),
        default=default,
        help="how a table counts: bed from 0, the end left out; ensembl from 1, the end included; a GTF is always the "
        f"latter (default: {default})",
    )


def add_exons(parser: argparse.ArgumentParser) -> None:
    """Add `--exons` and the `--genome` that they are of."""
    parser.add_argument(
        "--exons",
        required=True,
        metavar="FILE",
        help="GTF, or a table with the columns chrom, start, end, strand, gene_id, transcript_id",
    )
    parser.add_argument("--genome", required=True, metavar="FASTA", help="the assembly of the annotation")


def add_split(parser: argparse.ArgumentParser, gap: str) -> None:
    """The options that say what is held out; `gap` is what lies between splits by default."""
    regions = "CONTIG, CONTIG:START-END or CONTIG:START- (0-based), with commas between"
    parser.add_argument("--test", metavar="REGIONS", help=f"what the test split has: {regions}; else the last share")
    parser.add_argument("--valid", metavar="REGIONS", help="the same of the valid split")
    parser.add_argument(
        "--shares", metavar="V,T", default="0.15,0.15", help="shares of valid and test (default: 0.15,0.15)"
    )
    parser.add_argument("--gap", type=int, metavar="BASES", help=f"bases between splits, at least (default: {gap})")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn is drawn by it (default: 0)")


def rule_from(args: argparse.Namespace, window: int, even: bool = False) -> Rule:
    """The rule that the options say, for sequences of `window` bases. Raises UserError."""
    if not 2 <= window <= LONGEST_WINDOW or (even and window % 2):
        kind = "an even number of bases, " if even else ""
        raise UserError(f"--window: found {window}, wanted {kind}2 to {LONGEST_WINDOW:,}")
    gap = window if args.gap is None else args.gap
    if not window <= gap <= 1 << 40:
        raise UserError(f"--gap: found {gap}, wanted at least a window, {window}")
    try:
        valid, test = (float(word) for word in args.shares.split(","))
    except ValueError:
        valid = test = 0.0
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise UserError(
            f"--shares: found '{args.shares}', wanted two shares above 0 whose sum is below 1, as 0.15,0.15"
        )
    check_seed(args.seed)
    if bool(args.valid) != bool(args.test):
        raise UserError("--valid and --test: found one of them, wanted both or neither")
    return Rule(gap, parse_regions("--valid", args.valid), parse_regions("--test", args.test), valid, test)


def check_seed(seed: int) -> None:
    """Raise UserError unless a seed is one."""
    if not 0 <= seed < 1 << 31:
        raise UserError(f"--seed: found {seed}, wanted 0 to 2^31 - 1")


def drawn(places: Places, seed: int, *words: str) -> Places:
    """The places in an order that seed and words decide: the same on any machine, with any version of NumPy."""
    key = hashlib.sha256("\0".join((str(seed), *words)).encode()).digest()
    mixed = places.astype(np.uint64) + np.uint64(int.from_bytes(key[:8], "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # the mixer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    ordered: Places = places[np.lexsort((places, mixed))]
    return ordered
