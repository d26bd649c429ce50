"""What a benchmark leaves: a table on standard output, and a JSON file that is whole or not there.

{"command", "date", "machine": {cpu, cores, memory_gib, torch}, "rows": [...]}
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError
from hyena_ds.files.rows import Row
from hyena_ds.files.whole import write_whole
from hyena_ds.text import aligned, now, number

Column = tuple[str, Callable[[Row], str]]


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    values = list(seconds)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread_of_turns(turns: Sequence[Sequence[dict[str, Any]]]) -> Row:
    """What turns took, each the answers of all ranks: seconds of the slowest, CPU seconds of all, memory of the largest."""
    return {
        "wall_seconds": spread(max(answer["wall_seconds"] for answer in turn) for turn in turns),
        "cpu_seconds": spread(sum(answer["cpu_seconds"] for answer in turn) for turn in turns),
        "peak_memory_gib": max(answer["peak_memory_gib"] for turn in turns for answer in turn),
    }


def shown_spread(row: Row, key: str) -> str:
    """median (smallest to largest)."""
    value = row[key]
    return f"{number(value['median'])} ({number(value['min'])} to {number(value['max'])})"


def print_table(columns: list[Column], rows: list[Row], *below: str) -> None:
    """Right-aligned but for the first column; a row with a `status` other than measured shows it instead of numbers.

    Lines `below` follow the table.
    """
    cells = [[title for title, _ in columns]]
    for row in rows:
        shown = columns if row["status"] == "measured" else columns[:1]
        cells.append([show(row) for _, show in shown])
        if row["status"] != "measured":
            cells[-1].append(row["status"])
    print()
    for line in (*aligned(cells, left=(0,)), *below):
        print(f"  {line}")


def describe_machine(machine: dict[str, Any]) -> str:
    """One line."""
    line = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, torch {machine['torch']}"
    return f"{machine['accelerator']}; {line}" if "accelerator" in machine else line


def check_writable(path: str | None) -> None:
    """Raise UserError before hours of work, not after."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise UserError(f"--json {path}: found no directory {Path(path).parent}, wanted one that exists; make it first")


def save(path: str | None, machine: dict[str, Any], rows: list[Row]) -> None:
    """Write the rows to `path`, if there is one."""
    if path is None:
        return
    # Where things lie on this machine is of no use to a reader: an absolute path is cut to its last name.
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    command = " ".join(["hyena-ds", *words])
    write_json("--json", Path(path), {"command": command, "date": now(), "machine": machine, "rows": rows})


def write_json(option: str, path: Path, content: dict[str, Any], make_parent: bool = False) -> None:
    """Write the file that `option` names, whole. Raises UserError where that cannot be."""
    try:
        if make_parent:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror or error}; name a file that can be written") from None
