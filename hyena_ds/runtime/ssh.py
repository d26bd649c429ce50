"""What is asked of all hosts at once over ssh: whether a run can start there, and that nothing of it remains.

ssh is called as pdsh calls it: what PDSH_SSH_ARGS_APPEND says is said here too.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from hyena_ds.errors import UserError

ARGUMENTS = "PDSH_SSH_ARGS_APPEND"
LAUNCH = "HYENA_LAUNCH"
"""Names one launch, for its processes to be known by."""

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60


def alive_arguments(silence: float) -> str:
    """ssh would wait for ever for a host that is gone; but it may not give up a host that the watchdog still waits for."""
    return f"-o ServerAliveInterval={math.ceil(silence / 3)} -o ServerAliveCountMax=4"


def missing_programs(environment: Mapping[str, str]) -> str:
    """What this machine lacks of the programs that start ranks on other hosts, in words; empty where it has all."""
    missing = [program for program in ("pdsh", "ssh") if shutil.which(program, path=environment.get("PATH")) is None]
    return f"found no {' and no '.join(missing)}" if missing else ""


def check_hosts(hosts: Sequence[str], files: Mapping[str, Path], environment: Mapping[str, str]) -> None:
    """Raise UserError with every host that ssh does not reach, or that lacks one of the `files`."""
    if missing := missing_programs(environment):
        raise UserError(
            f"this machine: {missing}; install it (Debian: apt-get install pdsh openssh-client), or start the ranks of each "
            "host there: NO_SSH=1 NODE_RANK=... bash launch/hostfile.sh ..."
        )
    found = problems(hosts, files, environment)
    if found:
        raise UserError(
            f"hosts: {'; '.join(f'{host}: {problem}' for host, problem in found.items())}; wanted each of the {len(hosts)} hosts to let ssh in without a password and to have "
            f"this directory and hyena-ds's environment where they are here; try: ssh {hosts[0]} true, or take the host out"
        )


def problems(hosts: Sequence[str], files: Mapping[str, Path], environment: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each host that ssh does not reach, or that lacks one of the `files`; nothing of the others."""
    look = "; ".join(
        f"[ -e {shlex.quote(str(path))} ] || {{ echo found no {what} {shlex.quote(str(path))} >&2; exit 1; }}"
        for what, path in files.items()
    )
    answers = _ask(hosts, look, environment)
    return {host: answer.problem for host, answer in zip(hosts, answers, strict=True) if answer.code != 0}


def end_launch(hosts: Sequence[str], launch: str, environment: Mapping[str, str]) -> set[str]:
    """SIGKILL what still runs of a launch on the hosts that can be reached: a stopped process ends itself nowhere.

    The names that those hosts have for themselves.
    """
    mine = shlex.quote(f"{LAUNCH}={launch}")
    find = f"grep -lszFx -- {mine} /proc/[0-9]*/environ"
    kill = f"for file in $({find}); do file=${{file#/proc/}}; kill -KILL ${{file%/environ}}; done"
    return {answer.out for answer in _ask(hosts, f"{kill}; hostname", environment) if answer.code == 0}


def hang_up(launch: str) -> None:
    """SIGKILL what still runs of a launch on this machine; with its connection, a host's ranks end.

    pdsh gives every ssh a session of its own, where the relay does not look, and leaves them behind when it dies.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(LAUNCH) == launch:
                process.kill()


def ssh_command(host: str, command: str, environment: Mapping[str, str], ours: Sequence[str] = ()) -> list[str]:
    """ssh that runs a command on a host, with options of `ours` before those of PDSH_SSH_ARGS_APPEND; the first one counts."""
    theirs = shlex.split(environment.get(ARGUMENTS, ""))
    return ["ssh", "-o", "BatchMode=yes", *ours, *theirs, "-o", f"ConnectTimeout={_CONNECT_SECONDS}", host, command]


class _Answer(NamedTuple):
    code: int
    out: str
    """Last line of its output."""
    problem: str
    """Last line of what went wrong."""


def _ask(hosts: Sequence[str], command: str, environment: Mapping[str, str]) -> list[_Answer]:
    """Run a command on every host at once."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    commands = [ssh_command(host, command, environment) for host in hosts]
    calls = [subprocess.Popen(each, env=environment, text=True, **pipes) for each in commands]
    answers, until = [], time.monotonic() + _ANSWER_SECONDS
    for call in calls:
        try:
            out, said = call.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            call.kill()
            call.communicate()
            out, said = "", f"ssh got no answer in {_ANSWER_SECONDS} s"
        said = said or f"ssh ended with code {call.returncode}"
        answers.append(_Answer(call.returncode, *((text.strip().splitlines() or [""])[-1] for text in (out, said))))
    return answers
