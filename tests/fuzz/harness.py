"""Runs a command of hyena-ds on one hostile input, in this process, and holds it to what every command promises.

    arguments --hyena_ds.cli.main, 2 CPU seconds, 1 GiB--> exit code, output; a refusal is one sentence, never a traceback

HYENA_FUZZ is the number of inputs for each property, HYENA_FUZZ_SEED makes a run repeatable; both are printed at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from hyena_ds.cli import main

SEED = int(os.environ.get("HYENA_FUZZ_SEED", 20261124))
CASES = int(os.environ.get("HYENA_FUZZ", 12))
CPU_SECONDS = 2.0
"""More than this of a processor is a hang."""
WAIT_SECONDS = 60.0
"""A command that waits for something, and uses no processor, is one too; other work on the machine is not its fault."""
ROOM = 1 << 30
"""Bytes that a command may take beyond what the process has."""
LONGEST = 1000
"""Characters of a sentence."""

counted = 0
"""Inputs that commands were run on, in this process."""


class Hang(BaseException):
    """Raised in the middle of a command that takes too long; no `except Exception` swallows it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    error: str

    @property
    def sentence(self) -> str:
        """The last line on standard error."""
        return (self.error.strip("\n").split("\n") or [""])[-1]


def fuzzed(*strategies: Any, share: float = 1.0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a property to be tried on CASES times `share` inputs drawn from `strategies`, with the seed of this run."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        quick = settings(
            max_examples=max(1, round(CASES * share)),
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=[*HealthCheck],
        )
        return seed(SEED)(quick(given(*strategies)(test)))

    return decorate


def run(*arguments: str) -> Ended:
    """Run `hyena-ds ARGUMENTS`. Fails on a traceback, a hang, and a refusal that is not one short sentence."""
    global counted
    counted += 1
    out, error = io.StringIO(), io.StringIO()
    with bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = main([*arguments])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    result = Ended(code, out.getvalue(), error.getvalue())
    if code == 2:
        check_sentence(result.sentence)
    return result


def refused(*arguments: str) -> Ended:
    """Run a command that has to refuse its input."""
    ended = run(*arguments)
    assert ended.code == 2, f"accepted, with code {ended.code}: {ended.out[:2000]}"
    return ended


def accepted(*arguments: str, codes: tuple[int, ...] = (0,)) -> Ended:
    """Run a command that has to accept its input."""
    ended = run(*arguments)
    assert ended.code in codes, f"code {ended.code}: {ended.sentence}"
    return ended


def check_sentence(sentence: str) -> None:
    """Fail unless it is one line of text, of at most LONGEST characters behind the program's name."""
    assert "error: " in sentence, f"no sentence says why: {sentence!r}"
    text = sentence.split("error: ", 1)[1]
    assert 0 < len(text) <= LONGEST, f"{len(text)} characters: {text[:200]!r}"
    odd = {character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    assert not odd, f"control characters {odd} in {text!r}"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail when the body takes more than CPU_SECONDS of a processor, WAIT_SECONDS, or ROOM bytes."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    alarms = ((signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAIT_SECONDS))
    before = [signal.signal(number, late) for _, number, _ in alarms]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM, limits[1]))
    try:
        for timer, _, seconds in alarms:
            signal.setitimer(timer, seconds)
        yield
    except Hang:
        raise AssertionError(f"took more than {CPU_SECONDS:g} CPU seconds, or {WAIT_SECONDS:g} in all") from None
    except MemoryError:
        raise AssertionError(f"wanted more than {ROOM >> 20} MiB") from None
    finally:
        for (timer, number, _), handler in zip(alarms, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
