"""How far a run is: a bar in a terminal, a plain line now and then in a log file. Takes no torch.

Progress is counted in tokens: a step of a later stage may take a hundred times as long as one of the first.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

from hyena_ds.text import show_duration

PLAIN_SECONDS = 15.0
"""Seconds between plain lines."""


@dataclass(frozen=True)
class Reached:
    """Where a run is after a step."""

    step: int
    tokens: int
    """Tokens of all steps so far, also of those on which nothing was trained."""
    stage: int
    context_length: int
    loss: float


class Progress:
    """The progress of a run that continues after `step` steps and `tokens` tokens."""

    def __init__(self, total_steps: int, total_tokens: int, step: int, tokens: int):
        self._total_steps, self._total_tokens = total_steps, total_tokens
        self._plain_at, self._plain_tokens = time.monotonic(), tokens
        self._bar = tqdm(
            initial=tokens,
            total=total_tokens,
            desc=f"step {step:,}/{total_steps:,}",
            bar_format="{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{remaining}]",
            dynamic_ncols=True,
            mininterval=1.0,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    @property
    def has_bar(self) -> bool:
        """Whether somebody looks at a terminal."""
        return not self._bar.disable

    def advance(self, now: Reached) -> str | None:
        """Move the bar; every PLAIN_SECONDS a line that says the same."""
        if self.has_bar:
            where = f"step {now.step:,}/{self._total_steps:,}, context {now.context_length:,}"
            self._bar.set_description_str(f"{where}, loss {now.loss:.4f}", refresh=False)
            self._bar.update(now.tokens - self._bar.n)
        seconds = time.monotonic() - self._plain_at
        if seconds < PLAIN_SECONDS:
            return None
        rate = (now.tokens - self._plain_tokens) / seconds
        self._plain_at, self._plain_tokens = time.monotonic(), now.tokens
        left = f", about {show_duration((self._total_tokens - now.tokens) / rate)} left" if rate > 0 else ""
        where = f"step {now.step:,} of {self._total_steps:,} (stage {now.stage}, context {now.context_length:,})"
        return f"{where}: loss {now.loss:.4f}, {rate:,.0f} tokens/s{left}"

    def say(self, line: str) -> None:
        """A line on the terminal, above the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away: what follows is for reading."""
        self._bar.close()


def give_up_terminal() -> None:
    """Throw away what standard output did not take: at the interpreter's end it would fail once more, as exit code 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.stdout.flush()
