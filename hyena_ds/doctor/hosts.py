"""Asks every host at once, over ssh; a host that does not answer in time is an answer too.

Probed --ssh HOST, or a pipe--> python -m hyena_ds.doctor.probe --a line for a line--> facts
"""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hyena_ds.doctor.probe import MARK, clock
from hyena_ds.runtime.ssh import ssh_command

_CLOCK_LOOKS = 5
_ENDS_SECONDS = 5.0
_LAST_LINES = 5


class Speaker:
    """A process, in a session of its own, some lines of whose output are answers."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL):
        self.answers: queue.Queue[str | None] = queue.Queue()
        """JSON, a text each; None at the end of the output."""
        self.said: deque[str] = deque(maxlen=_LAST_LINES)
        """The last lines that are no answer."""
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=dict(environment), stdin=stdin, start_new_session=True, **output)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            _, mark, answer = line.partition(MARK)
            if mark:
                self.answers.put(answer)
            elif line:
                self.said.append(line)
        self.answers.put(None)


class Probed:
    """One host that is asked."""

    def __init__(self, name: str, environment: Mapping[str, str]):
        """`name` as ssh knows it; empty, it is this machine."""
        self.name = name or "this machine"
        self.facts: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        """What was asked -> why there is no fact."""
        self.is_gone = False
        """Whether the host can no longer be asked."""
        self._probe = Speaker(_command(name, environment), environment, subprocess.PIPE)

    def ask(self, fact: str, timeout: float, **request: Any) -> Any:
        """The answer to one request, kept as a fact; None where there is none, and a problem the first time."""
        if self.is_gone:
            return None
        process, said = self._probe.process, self._probe.said
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; how, is what it printed
            process.stdin.write(f"{json.dumps({'do': fact, **request})}\n".encode())
            process.stdin.flush()
        answer = {}
        try:
            line = self._probe.answers.get(timeout=timeout)
            if line is not None:
                answer = json.loads(line)
            else:
                self.is_gone, code = True, process.wait()
                self.problems[fact] = said[-1] if said else f"it ended with code {code}"
        except queue.Empty:
            self.is_gone = True
            self.problems[fact] = f"no answer in {timeout:.0f} s"
        if "problem" in answer:
            self.problems[fact] = answer["problem"]
        elif answer:
            self.facts[fact] = answer["answer"]
        return answer.get("answer")

    def ask_clock(self, timeout: float) -> None:
        """How far the host's clock is ahead of this one's, and the error of that: the quickest of a few answers."""
        looks = []
        for _ in range(_CLOCK_LOOKS):
            began, asked = time.perf_counter(), clock()
            theirs = self.ask("clock", timeout)
            error = (time.perf_counter() - began) / 2
            if theirs is None:
                self.facts.pop("clock", None)
                return
            looks.append((theirs - (asked + error), error))
        self.facts["clock"] = min(looks, key=lambda look: look[1])

    def close(self) -> None:
        """End the probe: by the end of its input, else at once."""
        process = self._probe.process
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(_ENDS_SECONDS if not self.is_gone else 0.0)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


def each(hosts: Sequence[Probed], fact: str, timeout: float, **request: Any) -> None:
    """Ask all of them the same, at once."""
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        list(pool.map(lambda host: host.ask(fact, timeout, **request), hosts))


def _command(name: str, environment: Mapping[str, str]) -> list[str]:
    """The probe, where a run's ranks would be: same Python and directory, variables and HOST_SETUP as theirs."""
    probe = [sys.executable, "-m", "hyena_ds.doctor.probe"]
    if not name:
        return probe
    steps = [f"cd {shlex.quote(str(Path.cwd()))}"]
    if environment.get("HOST_SETUP"):
        steps.append(f". {shlex.quote(environment['HOST_SETUP'])}")
    own = [f"{key}={value}" for key, value in environment.items() if key.startswith(("PYTHON", "CUDA_VISIBLE_"))]
    steps.append(f"exec env {shlex.join([*own, *probe])}")
    ours = ["-T", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    return ssh_command(name, " && ".join(steps), environment, ours)
