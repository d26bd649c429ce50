"""A verdict: what was looked at, where, what was found, and what to do. A list of them is the doctor's answer."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from enum import StrEnum

from hyena_ds.text import aligned, counted


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "WRONG"


OK, WARNING, WRONG = Level.OK, Level.WARNING, Level.WRONG


@dataclass(frozen=True)
class Verdict:
    """One line of the answer."""

    check: str
    where: str
    """A host, hosts, ranks, or the run."""
    level: Level
    found: str
    to_do: str = ""
    """Empty where all is well."""


_WIDTH = 120


def exit_code(verdicts: list[Verdict]) -> int:
    """1 when something is wrong; a warning lets a run begin."""
    return int(any(verdict.level is WRONG for verdict in verdicts))


def table(verdicts: list[Verdict]) -> str:
    """For reading: a line each, with what to do below it, and the sum of it all at the end."""
    begins = aligned([(verdict.level, verdict.check, verdict.where) for verdict in verdicts], left=range(3))
    hang = " " * (max(map(len, begins)) + 2)
    lines = []
    for begin, verdict in zip(begins, verdicts, strict=True):
        lines += _wrapped(verdict.found, f"{begin:<{len(hang)}}", hang)
        lines += _wrapped(verdict.to_do, f"{hang}-> ", f"{hang}   ")
    wrong, warned = (sum(each.level is level for each in verdicts) for level in (WRONG, WARNING))
    lines.append(f"{len(verdicts)} checks: {wrong} wrong, {counted(warned, 'warning')}")
    return "\n".join(lines)


def to_json(verdicts: list[Verdict]) -> str:
    """For programs."""
    found = [{**asdict(verdict), "level": verdict.level.value.lower()} for verdict in verdicts]
    return json.dumps({"ok": not exit_code(verdicts), "verdicts": found}, indent=1)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines of the table; paths stay whole."""
    wrapper = textwrap.TextWrapper(_WIDTH, first, others, break_on_hyphens=False, break_long_words=False)
    return wrapper.wrap(text)
