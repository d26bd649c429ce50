"""Sequences with targets, in memory.

n sequences, K outputs of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

Kind = Literal["classification", "multilabel", "regression", "per_base"]
KINDS: tuple[str, ...] = get_args(Kind)
UNLABELLED = -100
"""The target of a base that has none."""
Targets = NDArray[Any] | tuple[NDArray[np.int8], ...]


class Interval(NamedTuple):
    """Bases `[start, end)` of a contig, 0-based, read on the strand + or -; a dot where it is not known."""

    contig: str
    start: int
    end: int
    strand: str = "."


@dataclass(frozen=True)
class LabelledSet:
    """Sequences with targets, in file order."""

    sequences: tuple[str, ...]
    """Upper-case A C G T N."""
    targets: Targets
    """classification: int64 (n,), index into `classes`. multilabel: (n, K), 0 or 1 in uint8, or float32 where some are NaN, not
    measured. regression: float32 (n,), or (n, K). per_base: n int8 arrays as long as their sequences, UNLABELLED where a base has
    no label."""
    classes: tuple[str, ...]
    """Names of the classes, sorted: numbers as numbers, else as text. Of a multilabel or regression set: names of the outputs."""
    names: tuple[str, ...]
    """«file:line» or «contig:start-end»: what a message calls a sequence."""
    places: tuple[Interval | None, ...]
    """Where a sequence comes from, where that is known."""
    groups: tuple[str, ...] | None = None
    """The column `group`: sequences of one gene or chromosome, which a split keeps together."""
    ambiguous: int = 0
    """IUPAC codes that were read as N."""

    def __len__(self) -> int:
        """Sequences."""
        return len(self.sequences)

    @property
    def kind(self) -> str:
        """One of KINDS, as the targets are."""
        if isinstance(self.targets, tuple):
            return "per_base"
        if self.targets.dtype == np.int64:
            return "classification"
        binary = self.targets.ndim == 2 and bool(np.isin(self.targets[~np.isnan(self.targets)], (0, 1)).all())
        return "multilabel" if binary else "regression"

    def take(self, rows: NDArray[np.int64]) -> LabelledSet:
        """The sequences of these numbers, in this order."""
        chosen = rows.tolist()
        targets = tuple(self.targets[at] for at in chosen) if isinstance(self.targets, tuple) else self.targets[rows]
        return replace(
            self,
            sequences=tuple(self.sequences[at] for at in chosen),
            targets=targets,
            names=tuple(self.names[at] for at in chosen),
            places=tuple(self.places[at] for at in chosen),
            groups=None if self.groups is None else tuple(self.groups[at] for at in chosen),
        )


def joined(parts: list[LabelledSet]) -> LabelledSet:
    """Sets of the same classes and kind, one after the other."""
    first = parts[0]
    grouped = [part.groups for part in parts if part.groups is not None]
    targets: Targets
    if isinstance(first.targets, tuple):
        targets = tuple(target for part in parts for target in part.targets)
    else:
        targets = np.concatenate([np.asarray(part.targets) for part in parts])
    return LabelledSet(
        tuple(text for part in parts for text in part.sequences),
        targets,
        first.classes,
        tuple(name for part in parts for name in part.names),
        tuple(place for part in parts for place in part.places),
        tuple(group for groups in grouped for group in groups) if len(grouped) == len(parts) else None,
        sum(part.ambiguous for part in parts),
    )


def check_kind(kind: str) -> None:
    """Raise UserError unless `kind` is one of KINDS."""
    if kind not in KINDS:
        raise UserError(
            f"kind: found '{in_one_line(kind, MOST_QUOTED)}', wanted {', '.join(KINDS[:-1])} or {KINDS[-1]}"
        )
