"""Small labelled sets, made: random bases whose labels follow from what they are."""

from __future__ import annotations

import random
from pathlib import Path

CLASSES = "xyz"


def write_rows(path: Path, rows: list[tuple[str, str]], titles: str = "sequence,label") -> Path:
    path.write_text("".join(f"{line}\n" for line in (titles, *map(",".join, rows))))
    return path


def made(kind: str, count: int, seed: int = 1, shortest: int = 5, longest: int = 32) -> list[tuple[str, str]]:
    """Rows of a kind. Some outputs of multilabel are not measured, some bases of per_base have no label; one class is rare."""
    draw, found = random.Random(seed), []
    for number in range(count):
        share = draw.random()
        bases = "".join(draw.choices("ACGT", [share, 1 - share, 0.5, 0.5], k=draw.randint(shortest, longest)))
        label = {
            "classification": CLASSES[number % 7 % 3],
            "multilabel": f"{int(share > 0.5)};{'' if number % 3 == 0 else number % 2}",
            "regression": f"{10 + 5 * share:.3f}",
            "per_base": "".join("." if draw.random() < 0.2 else str(int(base in "AG")) for base in bases),
        }[kind]
        if kind == "classification":
            bases = bases[:4] + CLASSES.translate(str.maketrans("xyz", "ACG"))[number % 7 % 3] * (len(bases) - 4)
        found.append((bases, label))
    return found
