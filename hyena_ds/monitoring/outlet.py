"""A place that monitoring writes to, and that training does not depend on. Takes no torch."""

from __future__ import annotations

from collections.abc import Callable


class Outlet:
    """Writes that may fail: the first failure is said, all are counted, none is raised."""

    def __init__(self, name: str, say: Callable[[str], None]):
        self._name, self._say = name, say
        self.lost = 0
        """Writes that failed."""

    def attempt(self, write: Callable[[], object]) -> None:
        """Run `write`. Whatever it raises, a library's errors too, is no reason to end the training."""
        try:
            write()
        except Exception as error:
            self.lost += 1
            if self.lost == 1:
                self._say(f"{self._name}: cannot be written ({cause(error)}); training goes on without it")

    def close(self) -> None:
        """Say how much was lost."""
        if self.lost:
            self._say(f"{self._name}: {self.lost:,} {'write was' if self.lost == 1 else 'writes were'} lost")


def cause(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split())
