"""Which checkpoint a run resumes from, found by all ranks together before a byte of it is used.

step-* directories, the newest first --manifest, sizes, every rank a share of the SHA-256 sums--> the first whole one
"""

from __future__ import annotations

from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, named_checkpoint, none_is_whole, problem_of
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute


def choose_checkpoint(directory: Path, resume: str, compute: Compute) -> tuple[Path | None, list[str]]:
    """(the checkpoint that `resume` asks for, a line for each damaged one that was passed over). Collective.

    None where there are no checkpoints. Raises UserError when there are some and none is whole, or when the one that
    `resume` names is damaged.
    """
    if resume != "latest":
        if resume == "never":
            return None, []
        named = from_rank_zero(lambda: named_checkpoint(resume))
        problem = _problem(named, compute)
        if problem is not None:
            raise UserError(problem)
        return named, []
    problems: list[str] = []
    for checkpoint in from_rank_zero(lambda: checkpoints_in(directory)):
        problem = _problem(checkpoint, compute)
        if problem is None:
            return checkpoint, [f"damaged checkpoint passed over: {line}" for line in problems]
        problems.append(problem)
    if problems:
        raise none_is_whole(directory, problems[0])
    return None, []


def _problem(checkpoint: Path, compute: Compute) -> str | None:
    """The lowest rank's, on every rank. Collective."""
    own = problem_of(checkpoint, compute.rank, compute.ranks)
    return next((problem for problem in from_every_rank(own) if problem is not None), None)
