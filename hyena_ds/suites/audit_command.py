"""`hyena-ds audit TRAIN TEST`: what speaks against a benchmark, and what rules without a model reach. Takes no torch."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, need
from hyena_ds.files.whole import write_whole
from hyena_ds.labelled.metrics import OF_KIND
from hyena_ds.labelled.reading import LABEL, SEQUENCE, read_labelled
from hyena_ds.labelled.sets import KINDS
from hyena_ds.suites.thresholds import SHORTEST_KMER
from hyena_ds.text import aligned

if TYPE_CHECKING:
    from hyena_ds.suites.audit import Audit, Dev

FAIL_CODE = 1
_NAMES = {"mcc": "MCC", "auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "r2": "R2", "mse": "MSE"}
_SHOWN = {
    "classification": ("accuracy", "mcc", "auroc", "f1"),
    "per_base": ("accuracy", "mcc", "auroc", "f1"),
    "multilabel": OF_KIND["multilabel"],
    "regression": ("r2", "pearson", "spearman"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds audit`; `run` is a function of the parsed arguments."""
    parser.description = (
        "Look for what a model could use in the place of biology: duplicates, overlaps, made negatives, composition. "
        "Exit code 0 for OK and WARN, 1 for FAIL, 2 for input that is none."
    )
    forms = "CSV, TSV or Parquet with sequence,label; a directory with a file per class; FASTA, BED or VCF with labels"
    parser.add_argument("train", metavar="TRAIN", help=forms)
    parser.add_argument("test", metavar="TEST", help="the same, of the test set")
    parser.add_argument("--dev", metavar="FILE", help="the same, of the set on which a model is chosen")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help=f"what is predicted (default: {KINDS[0]})")
    parser.add_argument("--genome", metavar="FASTA", help="what intervals are cut from, where a file has no sequences")
    parser.add_argument("--sequence", metavar="COLUMN", default=SEQUENCE, help=f"of sequences (default: {SEQUENCE})")
    parser.add_argument(
        "--label", metavar="COLUMN", default=LABEL, help=f"of labels, or a key of a VCF's INFO (default: {LABEL})"
    )
    parser.add_argument("--json", metavar="PATH", help="also write all that is found to a JSON file")
    parser.set_defaults(run=_audit)


def _audit(parsed: argparse.Namespace) -> int:
    for package in ("scipy", "sklearn"):
        need(package, "predict")
    from hyena_ds.suites.audit import audit

    if parsed.json is not None and not Path(parsed.json).parent.is_dir():
        raise UserError(f"--json: {Path(parsed.json).parent}: no such directory; make it first")
    options = {"genome": parsed.genome, "sequence": parsed.sequence, "label": parsed.label}
    train = read_labelled(parsed.train, parsed.kind, **options)
    test = read_labelled(parsed.test, parsed.kind, classes=train.classes, **options)
    dev = None if parsed.dev is None else read_labelled(parsed.dev, parsed.kind, classes=train.classes, **options)
    found = audit(train, test, dev)
    print("\n".join(map(in_one_line, described(found))))
    if parsed.json is not None:
        files = {"train_file": parsed.train, "test_file": parsed.test}
        files |= {} if dev is None else {"dev_file": parsed.dev}
        about = {**files, **found.as_dict()}
        write_whole(Path(parsed.json), json.dumps(about, indent=1) + "\n")
    return FAIL_CODE if found.verdict == "FAIL" else 0


def described(found: Audit) -> list[str]:
    """The lines that the command prints: the sets, what they share, row zero, verdict and reasons."""
    about = found.as_dict()
    lines = aligned([["", "sequences", "shortest", "median", "longest", "of each class"], *_sides(found)], left=(0, 5))
    shared, near, twins = about["duplicates"], about["near"], about["twins"]
    n, m = found.rows
    rows = [
        ["", "test in train", "within train", "within test"],
        ["equal", _of(shared["exact"], m), _of(shared["within_train"], n), _of(shared["within_test"], m)],
        ["equal on the other strand", _of(shared["reverse_complement"], m), "", ""],
    ]
    if near["k"] >= SHORTEST_KMER:
        within = (_of(near["within_train"], n), _of(near["within_test"], m))
        rows.append([f"near, by {near['k']}-mers", _of(near["test"], m), *within])
    if twins["places_known"]:
        rows.append(["overlapping by half or more", _of(twins["test"], m), "", ""])
        rows.append(["  with another label", _of(twins["other_label"], m), "", ""])
    if found.dev is not None:
        rows = [[*row, *cells] for row, cells in zip(rows, _of_dev(rows, found.dev, m), strict=True)]
    lines += ["", *aligned(rows, left=(0,))]
    metrics = _SHOWN[found.kind]
    titles = ["row zero", "", *(_NAMES.get(name, name.replace("_", " ").replace("au", "AU")) for name in metrics)]
    table = [[rule.name, rule.chosen, *(_number(rule.metrics[name]) for name in metrics)] for rule in found.row_zero]
    lines += ["", *aligned([titles, *table], left=(0, 1)), ""]
    lines.append(f"{found.verdict}{': nothing was found' if not found.reasons else ''}")
    lines += [f"  {one.level}  {one.text}" for one in found.reasons]
    examples = {"is in train as": shared["examples"], "overlaps": twins["examples"]}
    return lines + [
        f"  for instance {mine} {what} {theirs}" for what, pairs in examples.items() for mine, theirs in pairs[:1]
    ]


def _of_dev(rows: list[list[str]], dev: Dev, tests: int) -> Iterator[list[str]]:
    """Two cells more of each row of the table of what is shared."""
    about = dev.as_dict()
    keys = {"equal": "exact", "equal on the other strand": "reverse_complement"}
    for title, *_ in rows:
        key = "near" if title.startswith("near") else "twins" if title.startswith("over") else keys.get(title)
        sides = (("dev_in_train", "dev in train", dev.rows), ("test_in_dev", "test in dev", tests))
        yield [_of(about[side][key], count) if key else "" if title else name for side, name, count in sides]


def _sides(found: Audit) -> list[list[str]]:
    sides, dev = [], found.dev
    of = [*zip(("train", "test"), found.rows, found.lengths, found.class_rows, strict=True)]
    of += [] if dev is None else [("dev", dev.rows, dev.lengths, dev.class_rows)]
    for name, rows, lengths, counts in of:
        each = ", ".join(f"{label} {count:,}" for label, count in zip(found.classes, counts, strict=False))
        sides.append([name, f"{rows:,}", *(f"{length:,}" for length in lengths), in_one_line(each, MOST_QUOTED) or "-"])
    return sides


def _of(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
