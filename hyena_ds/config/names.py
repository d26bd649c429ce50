"""Names of runs and sweeps: directories, lines of a log, words on a command line.

A name is checked when its directory is about to be made: what was made under other rules is still read and resumed.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, is_control

MOST_BYTES = 200
"""Bytes of a name in UTF-8; file systems take 255, and a sweep writes NAME.outcome.json beside a run."""


def check_new_name(name: str, made: Path, what: str) -> None:
    """Raise UserError where `name`, that of `what`, breaks a rule and `made`, which it led to, is not there yet."""
    problem = problem_of(name)
    if problem is not None and not os.path.exists(made):
        raise UserError(
            f"{what}: found '{in_one_line(name, MOST_QUOTED)}', {problem}; wanted a letter or digit, then at most "
            f"{MOST_BYTES} bytes in all without / and control characters; choose another name"
        )


def problem_of(name: str) -> str | None:
    """What is wrong with the name of a new run or sweep."""
    if not name:
        return "which is empty"
    if "/" in name:
        return "which holds a /"
    control = next((character for character in name if is_control(character)), None)
    if control is not None:
        return f"which holds the control character {ord(control):#x}"
    if unicodedata.category(name[0])[0] not in "LN":
        return f"which begins with '{name[0]}'"
    size = len(name.encode())
    return f"of {size:,} bytes" if size > MOST_BYTES else None
