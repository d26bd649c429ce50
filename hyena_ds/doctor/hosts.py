"""Asks every host at once, over ssh; a host that does not answer in time is an answer too.

Probed --ssh HOST, or a pipe--> python -m hyena_ds.doctor.probe --a line for a line--> facts
"""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hyena_ds.doctor.probe import MARK

_CONNECT_SECONDS = 10
_CLOCK_LOOKS = 5
_ENDS_SECONDS = 5.0


class NoAnswer(Exception):
    """What became of the host or of its answer, in words."""


class Probed:
    """One host that is asked."""

    def __init__(self, name: str | None, environment: Mapping[str, str]):
        """`name` as ssh knows it, or None for this machine."""
        self.name = name or "this machine"
        self.facts: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        """What was asked -> why there is no fact."""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: list[str] = []
        """What was printed that is no answer."""
        self._gone = False
        self._process = subprocess.Popen(
            _command(name, environment),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def answers(self) -> bool:
        """Whether the host can still be asked."""
        return not self._gone

    def ask(self, fact: str, timeout: float, **request: Any) -> Any:
        """The answer to one request, kept as a fact; None where there is none, and a problem the first time."""
        if self._gone:
            return None
        try:
            self.facts[fact] = self._ask(timeout, do=fact, **request)
            return self.facts[fact]
        except NoAnswer as problem:
            self.problems[fact] = str(problem)
            return None

    def ask_clock(self, timeout: float) -> None:
        """How far the host's clock is ahead of this one's, and the error of that: the quickest of a few answers."""
        best: tuple[float, float] | None = None
        for _ in range(_CLOCK_LOOKS):
            began, asked = time.perf_counter(), _now()
            theirs = self.ask("clock", timeout)
            took = time.perf_counter() - began
            if theirs is None:
                return
            if best is None or took / 2 < best[1]:
                best = (theirs - (asked + took / 2), took / 2)
        self.facts["clock"] = best

    def close(self) -> None:
        """End the probe: by the end of its input, else at once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(_ENDS_SECONDS if not self._gone else 0.0)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _ask(self, timeout: float, **request: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; how, is what it printed
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self._gone = True
            raise NoAnswer(f"no answer in {timeout:.0f} s") from None
        if line is None:
            self._gone = True
            code = self._process.wait()
            raise NoAnswer(self._said[-1] if self._said else f"it ended with code {code}")
        answer = json.loads(line)
        if "problem" in answer:
            raise NoAnswer(answer["problem"])
        return answer["answer"]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
            elif line:
                self._said.append(line)
        self._lines.put(None)


def each(hosts: Sequence[Probed], fact: str, timeout: float, **request: Any) -> None:
    """Ask all of them the same, at once."""
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        list(pool.map(lambda host: host.ask(fact, timeout, **request), hosts))


def each_clock(hosts: Sequence[Probed], timeout: float) -> None:
    """One after the other: what takes the time of this machine would be seen as a host's."""
    for host in hosts:
        if host.answers:
            host.ask_clock(timeout)


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _command(name: str | None, environment: Mapping[str, str]) -> list[str]:
    """The probe, where a run's ranks would be: same Python and directory, variables and HOST_SETUP as theirs."""
    probe = [sys.executable, "-m", "hyena_ds.doctor.probe"]
    if name is None:
        return probe
    steps = [f"cd {shlex.quote(str(Path.cwd()))}"]
    if environment.get("HOST_SETUP"):
        steps.append(f". {shlex.quote(environment['HOST_SETUP'])}")
    own = [f"{key}={value}" for key, value in environment.items() if key.startswith(("PYTHON", "CUDA_VISIBLE_"))]
    steps.append(f"exec env {shlex.join([*own, *probe])}")
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    options += shlex.split(environment.get("PDSH_SSH_ARGS_APPEND", ""))
    return ["ssh", *options, name, " && ".join(steps)]
