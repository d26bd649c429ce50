"""What ends a run on purpose: one sentence, no traceback; exit code 2, or 3 where the numbers went wrong."""

from __future__ import annotations

from hyena_ds.config.secrets import redacted


class UserError(Exception):
    """Something the user can put right. The text says where, what was found, what was wanted and what to do; a secret of
    an address or a command that it quotes is left out."""

    exit_code = 2

    def __init__(self, text: str = ""):
        super().__init__(redacted(text))


class LocalError(UserError):
    """What this rank alone has met, and the others cannot know: it speaks for itself, whatever its number."""


class NotFiniteError(UserError):
    """Loss or gradients were not finite more often than the config allows; all ranks raise it together."""

    exit_code = 3
