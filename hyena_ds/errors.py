"""What ends a run on purpose: one sentence, no traceback; exit code 2, or 3 where the numbers went wrong."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. The text says where, what was found, what was wanted and what to do."""

    exit_code = 2


class LocalError(UserError):
    """What this rank alone has met, and the others cannot know: it speaks for itself, whatever its number."""


class UnwrittenError(UserError):
    """metrics.jsonl cannot be written; all ranks raise it together. Another start may find room."""

    exit_code = 70


class NotFiniteError(UserError):
    """Loss or gradients were not finite more often than the config allows; all ranks raise it together."""

    exit_code = 3
