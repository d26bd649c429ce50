"""Small genomes and annotations for tests of recipes, the command, and what any task must hold, worked out another way."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.cli import main
from tests.data_prep.workshop import fasta_text, gzipped

PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}
SPLITS = ("train", "valid", "test")
EXONS = "chrom\tstart\tend\tstrand\tgene_id\ttranscript_id\n"


def other_strand(sequence: str) -> str:
    return "".join(PAIRS[letter] for letter in reversed(sequence))


class Recipes:
    """Files of one directory, and the command that makes tasks of them."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]):
        self.directory = directory
        self._capsys = capsys

    def write(self, name: str, content: str | bytes) -> str:
        path = self.directory / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzipped(data) if name.endswith(".gz") else data)
        return str(path)

    def fasta(self, name: str, records: dict[str, str]) -> str:
        return self.write(name, fasta_text(records, width=61))

    def exons(self, name: str, rows: list[tuple[Any, ...]]) -> str:
        return self.write(name, EXONS + "".join("\t".join(map(str, row)) + "\n" for row in rows))

    def run(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["prep", "task", *words])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def make(self, *words: str, out: str = "out") -> Task:
        code, _, err = self.run(*words, str(self.directory / out))
        assert code == 0, err
        return Task(self.directory / out)

    def refused(self, *words: str) -> str:
        """The one sentence of a command that fails, and leaves nothing."""
        before = sorted(self.directory.iterdir())
        out = "out" if (self.directory / "out").exists() else "new/out"
        code, _, err = self.run(*words, str(self.directory / out))
        assert code == 2 and sorted(self.directory.iterdir()) == before
        return err.strip().splitlines()[-1]


class Task:
    """What a recipe wrote."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.card = json.loads((directory / "card.json").read_text())
        forward = self.card["recipe"] in ("splice", "exons", "biotypes", "mpsa")
        assert self.card["strand"] == ("forward" if forward else "either")

    def rows(self, split: str) -> list[dict[str, str]]:
        with gzip.open(self.directory / f"{split}.csv.gz", "rt", newline="") as file:
            return list(csv.DictReader(file))

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.directory.iterdir())}

    def check(self, genome: dict[str, str], gap: int) -> None:
        """Every sequence is what the genome has at its place; splits are `gap` bases apart, and share no group."""
        places: dict[str, list[tuple[str, int, int]]] = {}
        groups: dict[str, set[str]] = {}
        for split in SPLITS:
            rows = self.rows(split)
            assert len(rows) == self.card["counts"][split]["rows"] > 0
            for row in rows:
                forward = genome[row["contig"]].upper()[int(row["start"]) : int(row["end"])]
                wanted = other_strand(forward) if row["strand"] == "-" else forward
                assert row.get("reference", row["sequence"]) == wanted
            places[split] = [(row["contig"], int(row["start"]), int(row["end"])) for row in rows]
            groups[split] = {row["group"] for row in rows}
        for one, other in itertools.combinations(SPLITS, 2):
            assert not groups[one] & groups[other]
            for contig, start, end in places[one]:
                for contig2, start2, end2 in places[other]:
                    assert contig != contig2 or start2 - end >= gap or start - end2 >= gap
