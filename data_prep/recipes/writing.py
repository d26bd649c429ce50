"""Writes a task's directory: three tables, a card for programs and one for people. The same inputs give the same bytes.

    Made --> OUT/train.csv.gz, valid.csv.gz, test.csv.gz, card.json, README.md        whole, or not at all

A table has the columns sequence and label, then group, contig, start, end and strand where they are known, then those that the
recipe adds. Nothing in it says when or where it was made.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.recipes.examples import Example, Made
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, sync_directory, to_disk
from hyena_ds.genome.splits import SPLITS
from hyena_ds.labelled.cards import CARD

_STRANDS = {
    "forward": "A label is of the strand that its sequence is written on: the reverse complement is no example of it",
    "either": "The reverse complement of a sequence has the same label",
}
_PLACE = ("group", "contig", "start", "end", "strand")


def identity(recipe: str, options: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What a task is made from: recipe, options, and its files by name, size and checksum. Raises UserError."""
    files = {}
    for name, path in inputs.items():
        if not path.is_file():
            raise UserError(f"{path}: no such file; name an existing one for {name}")
        files[name] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return {"recipe": recipe, "options": dict(options), "inputs": files}


def is_there(out: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether `out` holds this task already. Raises UserError where it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        card = json.loads((out / CARD).read_text(encoding="utf-8"))
        same = {name: card.get(name) for name in made_from} == json.loads(json.dumps(made_from))
        whole = all(sha256_of(out / name) == sha256 for name, sha256 in card["files"].items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise UserError(
            f"{out}: exists and is no task of this program; name another directory, or move it away"
        ) from None
    if not same:
        raise UserError(f"{out}: holds a task of other options or inputs; name another directory, or remove that one")
    if not whole:
        raise UserError(f"{out}: its files are not those that its {CARD} lists; remove the directory")
    return True


def write(out: Path, made_from: Mapping[str, Any], make: Callable[[Path], Made]) -> Made:
    """Write the task that `make` gives, which is handed an empty directory to work in. Raises UserError and OSError."""
    created = [parent for parent in out.parents if not parent.exists()]  # the innermost first
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside(out) as partial:
            partial.mkdir()
            made = make(partial / "work")
            _fill(partial, out, made_from, made)
            if out.is_dir():
                out.rmdir()  # it is empty
    except BaseException:
        for directory in created:
            with suppress(OSError):
                directory.rmdir()
        raise
    return made


def _fill(directory: Path, out: Path, made_from: Mapping[str, Any], made: Made) -> None:
    for split in SPLITS:
        if not made.splits[split]:
            raise UserError(
                f"{out}: found no row for {split}, wanted some in every split; give more sequence, or other regions to "
                "--valid and --test"
            )
    for split in SPLITS:
        _write_table(directory / f"{split}.csv.gz", made, made.splits[split])
    shutil.rmtree(directory / "work", ignore_errors=True)
    card = _card(made_from, made, directory)
    (directory / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(_readme(card), encoding="utf-8")
    sync_directory(directory)


def _write_table(path: Path, made: Made, rows: Iterable[Example]) -> None:
    with path.open("wb") as file:
        with (
            gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("sequence", "label", *(_PLACE if made.has_places else ()), *made.more))
            for row in rows:
                alone = f"{row.contig}:{row.start}"  # what has no group is one by itself
                place = (row.group or alone, row.contig, row.start, row.end, row.strand) if made.has_places else ()
                writer.writerow((row.sequence, row.label, *place, *row.more))
        to_disk(file)


def _card(made_from: Mapping[str, Any], made: Made, directory: Path) -> dict[str, Any]:
    return {
        **made_from,
        "command": _command(made_from),
        "kind": made.kind,
        "labels": made.labels,
        "strand": made.strand,
        "columns": ["sequence", "label", *(_PLACE if made.has_places else ()), *made.more],
        "coordinates": "0-based, half-open; sequence is that of the strand, 5' end first" if made.has_places else None,
        "split": made.rule,
        "counts": made.counts(),
        "left_out": dict(sorted(made.left_out.items())),
        "notes": list(made.notes),
        "files": {f"{split}.csv.gz": sha256_of(directory / f"{split}.csv.gz") for split in SPLITS},
    }


def _command(made_from: Mapping[str, Any]) -> str:
    """The command with the files by their bare names."""
    words = ["hyena-ds", "prep", "task", made_from["recipe"]]
    for name, file in made_from["inputs"].items():
        option, _, key = name.partition("=")
        words += [f"--{option}", f"{key}={file['file']}" if key else file["file"]]
    for name, value in made_from["options"].items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "OUT"])


def _readme(card: Mapping[str, Any]) -> str:
    lines = [
        f"# {card['recipe']}",
        "",
        f"Made by `{card['command']}`.",
        "",
        f"- Kind: {card['kind']}. Label: {card['labels']}.",
        f"- {_STRANDS[card['strand']]}.",
        f"- Columns: {', '.join(card['columns'])}."
        + (f" Places are {card['coordinates']}." if card["coordinates"] else ""),
        f"- Split: {card['split']}.",
        *(f"- {note}" for note in card["notes"]),
        "",
        "| split | rows | of each class | sha256 |",
        "|---|---|---|---|",
    ]
    for split, counts in card["counts"].items():
        classes = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "rows") or "-"
        lines.append(f"| {split} | {counts['rows']:,} | {classes} | `{card['files'][f'{split}.csv.gz']}` |")
    lines += ["", "| left out because | how many |", "|---|---|"] if card["left_out"] else []
    lines += [f"| {why} | {count:,} |" for why, count in card["left_out"].items()]
    lines += ["", "| input | file | bytes | sha256 |", "|---|---|---|---|"]
    for name, file in card["inputs"].items():
        lines.append(f"| {name} | {file['file']} | {file['bytes']:,} | `{file['sha256']}` |")
    return "\n".join(lines) + "\n"
