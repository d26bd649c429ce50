"""What a user's mistake looks like: one sentence, exit code 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. The text says where, what was found, what was wanted and what to do."""

    exit_code = 2
