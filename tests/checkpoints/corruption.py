"""Damage to a checkpoint, drawn at random: what a disk, a killed copy, or a careless hand does to it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNT = int(os.environ.get("HYENA_CORRUPTIONS", "30"))
"""Random damages that a test tries."""
KINDS = ("flip", "truncate", "extend", "delete", "swap", "zero")


@dataclass(frozen=True)
class Damage:
    """What was done, to which file."""

    kind: str
    file: str


def damage(checkpoint: Path, other: Path, file: str, kind: str, random: random.Random) -> Damage:
    """Do it. `other` is a whole checkpoint of the same run at another step, whose file is put in the place in a swap."""
    path = checkpoint / file
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[random.randrange(len(data))] ^= random.randrange(1, 256)
    elif kind == "truncate":
        del data[random.randrange(len(data)) :]
    elif kind == "extend":
        data += random.randbytes(random.randrange(1, 100))
    elif kind == "zero":  # a block that the disk lost
        start = random.randrange(len(data) - 1)
        stop = min(len(data), start + random.randrange(1, 4096))
        if not any(data[start:stop]):
            data[start] ^= 1
        else:
            data[start:stop] = bytes(stop - start)
    elif kind == "swap":
        data = bytearray((other / file).read_bytes())
        assert data != path.read_bytes(), "a swap that changes nothing"
    path.unlink()
    if kind != "delete":
        path.write_bytes(data)
    return Damage(kind, file)


def damaged_copies(whole: Path, other: Path, scratch: Path, count: int, seed: int) -> Iterator[tuple[Path, Damage]]:
    """`count` times a copy of checkpoint `whole`, damaged in one place; each is gone when the next one is drawn."""
    dice = random.Random(seed)
    files = sorted(path.name for path in whole.iterdir())
    for _ in range(count):
        copy = scratch / whole.name
        shutil.copytree(whole, copy)
        yield copy, damage(copy, other, dice.choice(files), dice.choice(KINDS), dice)
        shutil.rmtree(copy)
