"""Sets of random sequences, into which tests plant what an audit has to find."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyena_ds.labelled.sets import Interval, LabelledSet

LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
LENGTH = 120


def sequences(n: int, seed: int, length: int = LENGTH, gc: float = 0.42) -> list[str]:
    """`n` sequences of independent bases."""
    draw = np.random.default_rng(seed)
    p = [0.5 - gc / 2, gc / 2, gc / 2, 0.5 - gc / 2]
    return [LETTERS[row].tobytes().decode() for row in draw.choice(4, (n, length), p=p)]


def halves(n: int) -> np.ndarray:
    """Classes 0 and 1 in turn."""
    return np.arange(n, dtype=np.int64) % 2


def labelled(
    texts: Sequence[str],
    targets: np.ndarray | tuple[np.ndarray, ...],
    name: str = "train",
    places: Sequence[Interval | None] | None = None,
    classes: tuple[str, ...] = ("negative", "positive"),
) -> LabelledSet:
    """A set as it would be read from NAME.csv."""
    names = tuple(f"{name}.csv:{row + 2}" for row in range(len(texts)))
    return LabelledSet(tuple(texts), targets, classes, names, tuple(places or (None,) * len(texts)))


def clean(train: int = 400, test: int = 200) -> tuple[LabelledSet, LabelledSet]:
    """Two sets that share nothing, whose labels nothing tells."""
    both = sequences(train + test, seed=1)
    return labelled(both[:train], halves(train)), labelled(both[train:], halves(test), "test")


def replaced(data: LabelledSet, changes: dict[int, str], name: str = "test") -> LabelledSet:
    """A set with other sequences in some rows."""
    texts = [changes.get(row, text) for row, text in enumerate(data.sequences)]
    return labelled(texts, data.targets, name, data.places, data.classes)


def mutated(text: str, at: int) -> str:
    """A sequence with another base in one place."""
    return text[:at] + "ACGT"["CGTA".index(text[at])] + text[at + 1 :]


def shuffled(text: str, seed: int) -> str:
    """Another sequence with the same counts of dinucleotides: a random Eulerian path (Altschul and Erickson 1985)."""
    draw = np.random.default_rng(seed)
    while True:
        edges: dict[str, list[str]] = {}
        for a, b in itertools.pairwise(text):
            edges.setdefault(a, []).append(b)
        for letters in edges.values():
            draw.shuffle(letters)
        path = [text[0]]
        while edges.get(path[-1]):
            path.append(edges[path[-1]].pop())
        if len(path) == len(text):
            return "".join(path)


def write_csv(path: Path, data: LabelledSet) -> Path:
    """Write a set of classes as a CSV."""
    rows = zip(data.sequences, data.targets.tolist(), strict=True)
    path.write_text("sequence,label\n" + "".join(f"{text},{data.classes[at]}\n" for text, at in rows))
    return path
