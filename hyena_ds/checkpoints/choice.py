"""Which checkpoint a run resumes from, found by all ranks together before a byte of it is used.

step-* directories, the newest first --rank 0: manifest, run state; every rank its share of the other files--> the first whole one
"""

from __future__ import annotations

import socket
from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, named_checkpoint, none_is_whole
from hyena_ds.checkpoints.manifest import RUN_STATE, Checkpoint, check_file, read_outline
from hyena_ds.checkpoints.saved_state import nodes_with, state_files
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.nodes import looker


def choose_checkpoint(
    directory: Path, resume: str, compute: Compute, sums: bool = True
) -> tuple[Checkpoint | None, list[str]]:
    """(the checkpoint that `resume` asks for, a line for each damaged one that was passed over). Collective.

    Every byte is read and compared, unless `sums` is false: sizes are then enough. None where there are no checkpoints. Raises UserError when there are some and none is whole, or when the one that
    `resume` names is damaged.
    """
    if resume != "latest":
        if resume == "never":
            return None, []
        named = from_rank_zero(lambda: named_checkpoint(resume))
        found = read_together(named, compute, sums)
        if isinstance(found, str):
            raise UserError(found)
        return found, []
    problems: list[str] = []
    for path in from_rank_zero(lambda: checkpoints_in(directory)):
        found = read_together(path, compute, sums)
        if not isinstance(found, str):
            return found, [f"damaged checkpoint passed over: {line}" for line in problems]
        problems.append(found)
    if problems:
        raise none_is_whole(directory, problems[0])
    return None, []


def read_together(path: Path, compute: Compute, sums: bool = False) -> Checkpoint | str:
    """The checkpoint, or on every rank the lowest rank's problem with it. Collective.

    Manifest and run state come from rank 0. Each other file is looked at by one rank, and with `sums` each of its parts is
    read by one.
    """
    found = from_rank_zero(lambda: _outline_or_problem(path))
    if isinstance(found, str):
        return found
    return problem_of_files(found, compute, sums) or found


def problem_of_files(checkpoint: Checkpoint, compute: Compute, sums: bool) -> str | None:
    """The lowest rank's problem with the files that it looks at, as `read_together` shares them. Collective."""
    problems = from_every_rank(_problem_of_share(checkpoint, compute, sums))
    return next((problem for problem in problems if problem is not None), None)


def whole_checkpoint(path: Path, compute: Compute) -> Checkpoint:
    """The checkpoint, by sizes. Collective; raises UserError on all ranks."""
    found = read_together(path, compute)
    if isinstance(found, str):
        raise UserError(found)
    return found


def _outline_or_problem(path: Path) -> Checkpoint | str:
    try:
        return read_outline(path)
    except UserError as error:
        return str(error)


def _problem_of_share(checkpoint: Checkpoint, compute: Compute, sums: bool) -> str | None:
    """What is wrong with the files that this rank looks at."""
    states, files = state_files(checkpoint.manifest), checkpoint.manifest.files
    # What rank 0 wrote is read by the last rank of its node, which has seldom anything else to read.
    own_node = (compute.nodes[0][::-1],)
    lookers = {name: (number, compute.nodes) for number, name in enumerate(states)}
    lookers |= {name: (0, own_node) for name in files if name not in states and name != RUN_STATE}
    lookers |= {
        name: (number, nodes_with(checkpoint, name, compute.nodes))
        for name, (number, _) in lookers.items()
        if checkpoint.held
    }
    try:
        for name, (number, nodes) in lookers.items():
            own = [part for part in range(len(files[name].checked)) if looker(nodes, number, part) == compute.rank]
            if own:
                check_file(checkpoint.path, name, files[name], own if sums else ())
    except UserError as error:
        return f"{socket.gethostname()}: {error}" if checkpoint.held else str(error)
    return None
