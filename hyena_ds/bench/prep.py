"""`hyena-ds bench prep`: megabases a second from a random FASTA to shards, in a temporary directory.

    random FASTA --python -m data_prep build--> shards --python -m data_prep verify--> checked, then built again and timed

The preparation runs as its own process, as a user starts it: its start is part of the time.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import machine
from hyena_ds.bench.processes import WrongValue
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread_of_turns
from hyena_ds.errors import UserError
from hyena_ds.text import number

_LINE = 60
_PIECE, _UNKNOWN_LENGTH = _LINE * 16_667, 5_000
_CONFIG = """\
fasta: {fasta}
assembly: random
output: {output}
splits:
  by_fraction: {{train: 0.9, valid: 0.1}}
workers: {workers}
"""


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """One row."""
    if not 0.1 <= options.megabases <= 4000:
        raise UserError(f"--megabases: found {options.megabases:g}, wanted 0.1 to 4000")
    bases = round(options.megabases * 1e6)
    with tempfile.TemporaryDirectory(prefix="hyena-ds-bench-") as folder:
        directory = Path(folder)
        say(f"writing a random FASTA of {options.megabases:g} Mb")
        write_fasta(directory / "random.fa", bases)
        _prep("build", _config(directory, "checked", options.workers))
        _prep("verify", _config(directory, "checked", options.workers))
        say("the shards hold every base of the FASTA; timing")
        configs = [
            _config(directory, f"timed-{number_of_turn}", options.workers) for number_of_turn in range(options.rounds)
        ]
        turns = [[_prep("build", config)] for config in configs]
    row: Row = {"side": f"{options.workers} workers" if options.workers > 1 else "1 worker", "status": "measured"}
    row |= {"megabases": options.megabases, "workers": options.workers, **spread_of_turns(turns)}
    row["megabases_per_second"] = bases / 1e6 / row["wall_seconds"]["median"]
    described = machine()
    print_table(_COLUMNS, [row], describe_machine(described))
    return [row], described


def write_fasta(path: Path, bases: int) -> None:
    """One record of random letters, half of them soft-masked in runs, with a stretch of N every megabase."""
    generator = random.Random(0)
    with path.open("w", encoding="ascii") as file:
        file.write(">chrR\n")
        for first in range(0, bases, _PIECE):
            size = min(_PIECE, bases - first)
            unknown = min(_UNKNOWN_LENGTH, size // 10)
            letters = "".join(generator.choices("ACGT", k=size - unknown))
            half = len(letters) // 2
            text = letters[:half] + "N" * unknown + letters[half:].lower()
            file.writelines(text[at : at + _LINE] + "\n" for at in range(0, size, _LINE))


def _config(directory: Path, name: str, workers: int) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(_CONFIG.format(fasta=directory / "random.fa", output=directory / name, workers=workers))
    return path


def _prep(what: str, config: Path) -> dict[str, float]:
    """Run the preparation; seconds and memory of its process and those that it started."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_prep", what, str(config)], stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            text = output.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise WrongValue(f"prep {what} ended with exit code {process.returncode}: {text[-1]}")
    return {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_gib": usage.ru_maxrss / 2**20,
    }


_COLUMNS: list[Column] = [
    ("prep", lambda row: row["side"]),
    ("Mb", lambda row: number(row["megabases"])),
    ("s: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("CPU s", lambda row: shown_spread(row, "cpu_seconds")),
    ("Mb/s", lambda row: number(row["megabases_per_second"])),
    ("peak GiB", lambda row: number(row["peak_memory_gib"])),
]
