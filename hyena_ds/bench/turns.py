"""Sides that are alive at once and take turns. One that runs out of memory, or fails, ends with a status; the others go on.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from hyena_ds.bench.limits import say
from hyena_ds.bench.processes import DidNotFit, Ranks, SideFailed
from hyena_ds.bench.report import Row

K = TypeVar("K", bound=Hashable)
Turn = list[dict[str, Any]]
"""Answers of a side's ranks."""


class Sides(Generic[K]):
    """Processes by side, and the row of each, which says how a side ended that is no longer alive."""

    def __init__(self, rows: Mapping[K, Row]):
        self.rows = rows
        self._ranks: dict[K, Ranks] = {}

    def __enter__(self) -> Sides[K]:
        return self

    def __exit__(self, *_: object) -> None:
        for ranks in self._ranks.values():
            ranks.close()

    def start(self, started: Mapping[K, Ranks]) -> None:
        """Take the processes over, and wait until they are ready."""
        self._ranks.update(started)
        for side in self.alive():
            self._attempt(side, self._ranks[side].ready)

    def alive(self) -> list[K]:
        """The sides that still take part."""
        return list(self._ranks)

    def ask(self, side: K, method: str) -> list[Any] | None:
        """The answers of its ranks; None where it is over."""
        return self._attempt(side, lambda: self._ranks[side].ask(method)) if side in self._ranks else None

    def take_turns(self, method: str, rounds: int) -> dict[K, list[Turn]]:
        """The answers of `rounds` rounds, in each of which every side is asked once."""
        turns: dict[K, list[Turn]] = {side: [] for side in self._ranks}
        for number in range(rounds):
            for side in self.alive():
                if (turn := self.ask(side, method)) is not None:
                    turns[side].append(turn)
            say(f"round {number + 1} of {rounds} done")
        return turns

    def drop(self, side: K, status: str) -> None:
        """End a side."""
        self.rows[side]["status"] = status
        say(f"{self.rows[side]['side']}: {status}")
        self._ranks.pop(side).close()

    def _attempt(self, side: K, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DidNotFit as problem:
            self.drop(side, f"did not fit: {problem}")
        except SideFailed as problem:
            print(problem, file=sys.stderr)
            self.drop(side, f"failed: {str(problem).splitlines()[-1]}")
        return None


def interleaved(asks: Mapping[K, Callable[[], Turn]], rounds: int) -> dict[K, list[Turn]]:
    """The answers of `rounds` rounds, in each of which everything is asked once, after one round that does not count."""
    answers = [{name: ask() for name, ask in asks.items()} for _ in range(rounds + 1)]
    return {name: [answer[name] for answer in answers[1:]] for name in asks}
