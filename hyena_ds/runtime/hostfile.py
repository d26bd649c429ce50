"""What `launch/hostfile.sh` does: a run on the hosts of a DeepSpeed hostfile.

    hostfile, config, hosts --looked at here--> deepspeed launcher --pdsh, ssh--> launch/rank.sh on every host --> ranks
    faults.jsonl --> the first cause once more, as the last line

The settings are variables, which the head of launch/hostfile.sh explains. No torch.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.limits import MOST_LOCAL_RANKS
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.nodes import read_text_file
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, is_control, say
from hyena_ds.files.rows import read_faults
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.runtime.interruption import AGAIN, STOP_FILE, WANTED_CODES
from hyena_ds.runtime.local_ranks import QUIET
from hyena_ds.runtime.relay import RELAY, run_relayed
from hyena_ds.runtime.ssh import ARGUMENTS, LAUNCH, alive_arguments, check_hosts, end_launch, hang_up
from hyena_ds.shipped import launch_script

DIRECTORY = "HYENA_DIRECTORY"
"""The directory that ranks start in; DeepSpeed's own `cd` on a host knows no blanks."""

_FORWARDED = (
    *(STOP_FILE, LAUNCH, DIRECTORY, "HYENA_BIND_CORES"),
    *("DS_ACCELERATOR", "GLIBC_TUNABLES", "LD_LIBRARY_PATH", "TF_CPP_MIN_LOG_LEVEL"),
)
_FORWARDED_KINDS = ("CUDA_", "FI_", "GLOO_", "MKL_", "NCCL_", "OMP_", "PYTORCH_", "TORCH_")
"""How variables begin that libraries read. What begins with PYTHON or UCX is forwarded by DeepSpeed."""
_END_SECONDS = 10
"""Beyond twice the silence: the watchdog's, and then ssh's."""
_ENTRY = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[0-9]{1,9})\s*(#.*)?")
_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,63}@)?[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,252}")
"""A host's name or address, with a user's before it: no option of ssh, and nothing that a shell or pdsh would expand."""


@dataclass(frozen=True)
class Host:
    """A line of the hostfile."""

    name: str
    """As ssh knows it; may have a USER@."""
    slots: int
    """Ranks that start there."""


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts in the order of their ranks. Raises UserError with the line that is wrong."""
    hosts: dict[str, Host] = {}
    lines = read_text_file(path, "the hostfile", "lines like: node0 slots=8").split("\n")
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        entry, shown = _ENTRY.fullmatch(text), in_one_line(text, MOST_QUOTED)
        if entry is None or int(entry["slots"]) == 0 or any(map(is_control, text.replace("\t", " "))):
            raise UserError(f"{path}:{number}: found '{shown}', wanted a host and its processes, as: node0 slots=8")
        name, slots = entry["name"], int(entry["slots"])
        if _NAME.fullmatch(name) is None:
            raise UserError(
                f"{path}:{number}: found the host {in_one_line(name, MOST_QUOTED)}, wanted a name or an address of letters, "
                "digits and . _ : % -, at most 253 of them, which begins with none of . % -"
            )
        if slots > MOST_LOCAL_RANKS:
            raise UserError(
                f"{path}:{number}: found {slots} slots, wanted at most {MOST_LOCAL_RANKS:,} processes a host"
            )
        if name in hosts:
            raise UserError(f"{path}:{number}: found {name} a second time; give each host one line")
        hosts[name] = Host(name, slots)
    if not hosts:
        raise UserError(f"{path}: found no host, wanted at least one line like: node0 slots=8")
    return tuple(hosts.values())


def train_on_hosts(hostfile: Path, config_path: str, overrides: list[str], environment: Mapping[str, str]) -> int:
    """Train the config on the hosts; the exit code. Raises UserError before anything is started. Main thread only."""
    hosts = read_hostfile(hostfile)
    config = load_yaml(config_path, RunConfig, overrides)
    plan_stages(config, sum(host.slots for host in hosts))
    directory = RunDirectory(config)
    directory.check(config)
    script = launch_script("rank.sh")
    names, silence, ssh = [host.name for host in hosts], config.watchdog.silence, not environment.get("NO_SSH")
    stop_file = environment.get("STOP_FILE") or f".hyena-stop.{socket.gethostname()}.{os.getpid()}"
    own = launch_environment({**environment, STOP_FILE: str(Path(stop_file).absolute())}, silence, ssh)
    if ssh:
        check_hosts(names, {"directory": Path.cwd(), "Python": Path(sys.executable), "script": script}, own)
    program = rank_program("hyena_ds", "train", config_path, *overrides)
    known = len(read_faults(directory.faults))
    with forwarded(own, ssh):
        command = launch_command(hostfile, hosts, program, own, ssh)
        # The launcher of hosts needs no accelerator, and would look for one.
        base = {**own, "DS_ACCELERATOR": "cpu"} if ssh else own
        code = run_relayed(command, base, overdue(directory.faults, 2 * silence + _END_SECONDS))
    hang_up(own[LAUNCH])
    # A killed pdsh is no failure to DeepSpeed; only where the run directory is shared, it can be known here.
    whole = code == 0 and (directory.is_complete() or not directory.path.exists())
    if whole or (code != 0 and code in WANTED_CODES):
        return code
    near = {socket.gethostname()} | (end_launch(names, own[LAUNCH], own) if ssh else set())
    faults = read_faults(directory.faults)[known:]
    # Where hosts have lost each other, each side blames the other: ours is the one that this machine reaches.
    return _say_why(code, sorted(faults, key=lambda fault: fault.get("seen_on") not in near))


def launch_environment(environment: Mapping[str, str], silence: float, ssh: bool = True) -> dict[str, str]:
    """What the launcher of hosts starts with; where ssh is used, it gives up a host no sooner than after `silence`."""
    own = {**QUIET, **environment, LAUNCH: secrets.token_hex(8)}
    if ssh:
        own[DIRECTORY] = str(Path.cwd())
        own[ARGUMENTS] = f"{environment.get(ARGUMENTS, '')} {alive_arguments(silence)}".strip()
    return own


def rank_program(module: str, *arguments: str) -> list[str]:
    """What every host starts as each of its ranks: a module, by way of launch/rank.sh."""
    return ["bash", str(launch_script("rank.sh")), sys.executable, "-m", module, *arguments]


@contextmanager
def forwarded(own: dict[str, str], ssh: bool = True) -> Iterator[None]:
    """Within the block, `own` names a file that says what every host's ranks are to see of `own`."""
    with tempfile.NamedTemporaryFile("w", prefix="hyena-forwarded-") as file:
        file.write(environment_file(own) if ssh else "")
        file.flush()
        own["DS_ENV_FILE"] = file.name  # where DeepSpeed reads what to forward
        yield


def overdue(faults: Path, seconds: float) -> Callable[[], bool]:
    """Whether a fault has been written for so long that the launcher should have ended.

    It waits for a process that is stopped; and the host's other ranks, which would end it, there may not be.
    """

    def count() -> int:
        return len(read_faults(faults))

    known, since = count(), math.inf

    def is_overdue() -> bool:
        nonlocal since
        if since == math.inf and count() != known:
            since = time.monotonic()
        return time.monotonic() - since > seconds

    return is_overdue


def launch_command(
    hostfile: Path, hosts: Sequence[Host], program: Sequence[str], environment: Mapping[str, str], ssh: bool
) -> list[str]:
    """The deepspeed launcher's command that runs `program` as every rank. Raises UserError."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", "--hostfile", str(hostfile)]
    address = environment.get("MASTER_ADDR") or address_of(hosts[0])
    if address is not None:
        command += ["--master_addr", address]
    command += ["--master_port", environment.get("MASTER_PORT") or "29500", "--no_python", "--no_local_rank"]
    if ssh:
        # Without --force_multi a single host would mean this machine, whatever its name.
        command += ["--force_multi", "--no_ssh_check"]
        if environment.get("HOST_SETUP"):
            command += ["--venv_script", environment["HOST_SETUP"]]
        return [*command, program[0], *map(quoted, program[1:])]
    number = environment.get("NODE_RANK", "")
    if not number.isdecimal() or int(number) >= len(hosts):
        raise UserError(
            f"NODE_RANK: found '{number}', wanted this host's place in {hostfile}, 0 to {len(hosts) - 1}; set it beside NO_SSH"
        )
    if address is None:
        raise UserError(
            f"MASTER_ADDR: not set, and {hosts[0].name}, the first host, has no address here that others could reach; "
            "with NO_SSH, set MASTER_ADDR to its address, the same on every host"
        )
    return [*command, "--no_ssh", "--node_rank", number, *program]


def address_of(host: Host) -> str | None:
    """The host's address as this machine knows it; None where ssh alone knows the name, or it means this very machine."""
    try:
        found = socket.getaddrinfo(host.name.rpartition("@")[2], None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = [str(entry[4][0]) for entry in found]
    return next((each for each in addresses if not ip_address(each.partition("%")[0]).is_loopback), None)


def environment_file(environment: Mapping[str, str]) -> str:
    """What every host's ranks are to see of `environment`, as DeepSpeed reads it. Raises UserError."""
    lines = []
    wanted = {*_FORWARDED, *environment.get("FORWARD", "").split()}
    for name, value in sorted(environment.items()):
        if name not in wanted and not name.startswith(_FORWARDED_KINDS):
            continue
        if "\n" in value:
            raise UserError(
                f"{name}: found a value of several lines, wanted one line, or the hosts cannot have it; unset it"
            )
        # DeepSpeed writes export NAME="VALUE" for the host's shell.
        lines.append(f"{name}=" + _escaped(value, '$`"'))
    # There it is sshd's process for this connection, with which the ranks end.
    lines.append(f"{RELAY}=$PPID")
    return "".join(f"{line}\n" for line in lines)


def quoted(argument: str) -> str:
    """An argument as the host's shell and pdsh understand it, after DeepSpeed has put `"` around it if it has a space."""
    if " " in argument:
        return _escaped(argument, "$`")
    return shlex.quote(argument).replace("%", "%%")


def _escaped(text: str, characters: str) -> str:
    """A backslash before each of the characters and before another one, for a shell; pdsh wants its % twice."""
    return re.sub(rf"([\\{characters}])", r"\\\1", text).replace("%", "%%")


def _say_why(code: int, faults: list[dict[str, Any]]) -> int:
    """Say once more, below what launchers say of their end, why the run has ended; its exit code."""
    if faults:
        say(f"error: the run has ended: {faults[0]['text']}")
        return FAULT_CODE
    say(f"error: the launcher ended with code {code}, but the run is not complete")
    return code or FAULT_CODE


def _main(arguments: list[str]) -> int:
    try:
        return train_on_hosts(Path(arguments[0]), arguments[1], arguments[2:], os.environ)
    except UserError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:  # while ssh is tried; later the relay hears it
        say("interrupted")
        return AGAIN.code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
