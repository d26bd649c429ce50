"""What ends a run on purpose: one sentence, no traceback; exit code 2, or 3 where the numbers went wrong."""

from __future__ import annotations

import importlib
import sys
import unicodedata
from typing import Any

from hyena_ds.redaction import redacted

MOST_CHARACTERS = 1000
"""Characters of a sentence; what was found may be a file of megabytes."""
MOST_QUOTED = 200
"""Characters of a value that a sentence shows."""
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control and format characters (bidirectional ones too), halves of pairs, and line ends."""
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts are written with."""


class UserError(Exception):
    """Something the user can put right. The text says where, what was found, what was wanted and what to do.

    Whoever raises it: it becomes one line of at most `MOST_CHARACTERS`, nothing in it moves a terminal's cursor, and a secret
    of an address or a command that it quotes is left out.
    """

    exit_code = 2

    def __init__(self, text: str):
        super().__init__(in_one_line(redacted(text)))


class LocalError(UserError):
    """What this rank alone has met, and the others cannot know: it speaks for itself, whatever its number."""


class UnwrittenError(UserError):
    """metrics.jsonl cannot be written; all ranks raise it together. Another start may find room."""

    exit_code = 70


class NotFiniteError(UserError):
    """Loss or gradients were not finite more often than the config allows; all ranks raise it together."""

    exit_code = 3


class CorruptedError(UserError):
    """Ranks that must hold the same numbers do not, and there is no way back; all ranks raise it together."""

    exit_code = 3


def say(text: str, who: str = "hyena-ds") -> None:
    """Tell the user at once, on standard error, beside what a command prints."""
    print(f"{who}: {text}", file=sys.stderr, flush=True)


def need(package: str, extra: str) -> Any:
    """A library that an extra of this package brings. Raises UserError that names the extra where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed; pip install 'hyena-ds[{extra}]'") from None


def is_control(character: str) -> bool:
    """Whether it is no part of a text, but tells a terminal or a reader of lines what to do."""
    return unicodedata.category(character) in _CONTROLS and character not in _JOINERS


def in_one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """`text` with its control characters escaped, as `\\n`, and without its middle where it is longer than `most`."""
    text = _shortened(text, most)
    if not text.isprintable():
        text = "".join(_escaped(character) if is_control(character) else character for character in text)
    return _shortened(text, most)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
