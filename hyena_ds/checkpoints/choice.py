"""Which checkpoint a run resumes from, found by all ranks together before a byte of it is used.

step-* directories, the newest first --manifest, sizes, every rank a share of the SHA-256 sums--> the first whole one
"""

from __future__ import annotations

from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, named_checkpoint, none_is_whole, read_or_problem
from hyena_ds.checkpoints.manifest import Checkpoint
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute


def choose_checkpoint(directory: Path, resume: str, compute: Compute) -> tuple[Checkpoint | None, list[str]]:
    """(the checkpoint that `resume` asks for, a line for each damaged one that was passed over). Collective.

    None where there are no checkpoints. Raises UserError when there are some and none is whole, or when the one that
    `resume` names is damaged.
    """
    if resume != "latest":
        if resume == "never":
            return None, []
        named = from_rank_zero(lambda: named_checkpoint(resume))
        found = _read(named, compute)
        if isinstance(found, str):
            raise UserError(found)
        return found, []
    problems: list[str] = []
    for path in from_rank_zero(lambda: checkpoints_in(directory)):
        found = _read(path, compute)
        if not isinstance(found, str):
            return found, [f"damaged checkpoint passed over: {line}" for line in problems]
        problems.append(found)
    if problems:
        raise none_is_whole(directory, problems[0])
    return None, []


def _read(path: Path, compute: Compute) -> Checkpoint | str:
    """The checkpoint, or on every rank the lowest rank's problem with it. Collective."""
    own = read_or_problem(path, compute.rank, compute.ranks)
    problems = from_every_rank(own if isinstance(own, str) else None)
    return next((problem for problem in problems if problem is not None), own)
