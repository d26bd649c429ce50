"""Says what a directory of shards was made from, so that a later run knows whether it may go on with it.

    settings of the config + SHA-256 of the inputs --> Identity --> prep.json, in OUTPUT.partial and in OUTPUT

Paths, times, machines and the number of workers are no part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig
from hyena_ds.data.shards import sha256_of
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.bed import MISSING
from hyena_ds.genome.fasta import check_readable
from hyena_ds.genome.packed import check_file, readable

RECORD_NAME = "prep.json"
FORMAT = "hyena-ds prep 1"
"""Raised when the same input would give other bytes."""


@dataclass(frozen=True)
class Identity:
    """Settings and inputs of one prep."""

    settings: dict[str, Any]
    fasta: dict[str, Any]
    """`bytes` and `sha256` of the file as it was given."""
    bed: dict[str, Any] | None

    def difference(self, wanted: Identity) -> str:
        """What changed from this prep to another one, in words."""
        changed = [
            f"'{key}' was {json.dumps(self.settings.get(key))} and is {json.dumps(value)}"
            for key, value in wanted.settings.items()
            if self.settings.get(key) != value
        ]
        changed += ["the FASTA has other bytes"] if self.fasta != wanted.fasta else []
        changed += ["the BED has other bytes"] if self.bed != wanted.bed else []
        return "; ".join(changed)

    def write(self, directory: Path) -> None:
        """Write prep.json, with a SHA-256 of everything that the shards' bytes depend on."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        content["fingerprint"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        write_whole(directory / RECORD_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")


def identify(config: PrepConfig) -> Identity:
    """Read the inputs once; UserError when one is missing or empty."""
    fasta = Path(config.fasta)
    check_readable(fasta)
    bed = None if config.splits.bed is None else Path(config.splits.bed)
    if bed is not None:
        check_file(bed, "BED", MISSING)
    return Identity(config.settings(), _contents(fasta, "FASTA"), None if bed is None else _contents(bed, "BED"))


def _contents(path: Path, what: str) -> dict[str, Any]:
    with readable(path, what, MISSING):
        return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_identity(directory: Path) -> Identity | None:
    """What the directory says of itself, or None when it is not one of ours (or of another format)."""
    try:
        if not (directory / RECORD_NAME).is_file():
            return None
        raw = json.loads((directory / RECORD_NAME).read_text(encoding="utf-8"))
        if raw["format"] != FORMAT or not isinstance(raw["settings"], dict):
            return None
        return Identity(raw["settings"], raw["fasta"], raw["bed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
