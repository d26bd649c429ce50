"""`hyena-ds doctor [HOSTFILE] [--config CONFIG]`: what would go wrong, before it does.

    hosts --each alone, at once--> facts --compared--+
    ranks --together, as a run starts them--> findings +--> verdicts --> table or JSON, exit code 0 or 1

Every question has a time limit: a host that cannot be reached is a verdict.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.shape import checkpoint_bytes
from hyena_ds.doctor import judge
from hyena_ds.doctor.hosts import Probed, each
from hyena_ds.doctor.launch import Heard, listen
from hyena_ds.doctor.ranks_judge import together
from hyena_ds.doctor.verdict import WRONG, Verdict, exit_code, table, to_json
from hyena_ds.errors import UserError
from hyena_ds.runtime.hostfile import Host, forwarded, launch_command, launch_environment, rank_program, read_hostfile
from hyena_ds.runtime.local_ranks import devices_here, local_launch, local_ranks
from hyena_ds.runtime.ssh import LAUNCH, end_launch, missing_programs
from hyena_ds.tasks.deriving import load_run
from hyena_ds.text import counted

_HOST_SECONDS, _TORCH_SECONDS, _DISK_SECONDS = 30.0, 120.0, 60.0
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SSH_SILENCE = 30.0
_RANKS = "hyena_ds.doctor.ranks"


@dataclass(frozen=True)
class Patient:
    """What is looked at."""

    hosts: tuple[Host, ...]
    config_path: str | None
    overrides: list[str]
    config: RunConfig | None
    seconds: float
    is_here: bool
    """Whether it is this machine, which has no name, without ssh."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds doctor`; `run` is a function of the parsed arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="HOSTFILE | key.path=value",
        help="a DeepSpeed hostfile (lines NAME slots=RANKS; without one, this machine), and changes to the config",
    )
    parser.add_argument("--config", help="YAML file of the run that is to start there: its shards, disk and model")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="limit of the shards' checksums, and of the ranks (default: 300)"
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts for programs")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """1 when something is wrong."""
    hostfiles = [word for word in parsed.overrides if "=" not in word]
    overrides = [word for word in parsed.overrides if "=" in word]
    if len(hostfiles) > 1 or (overrides and parsed.config is None):
        raise UserError(
            f"doctor: found '{' '.join(parsed.overrides)}', wanted at most one hostfile, and key.path=value beside --config"
        )
    config = None if parsed.config is None else load_run(parsed.config, overrides)
    if hostfiles:
        hosts = read_hostfile(Path(hostfiles[0]))
    else:
        hosts = (Host("", local_ranks(config) if config is not None else devices_here() or 2),)
    verdicts = examine(Patient(hosts, parsed.config, overrides, config, parsed.seconds, is_here=not hostfiles))
    print(to_json(verdicts) if parsed.json else table(verdicts), flush=True)
    return exit_code(verdicts)


def examine(patient: Patient) -> list[Verdict]:
    """All verdicts. Main thread only."""
    environment = _without_rank(os.environ)
    _say(f"looking at {'this machine' if patient.is_here else counted(len(patient.hosts), 'host')}")
    probed = [Probed(host.name, environment) for host in patient.hosts]
    try:
        _ask(probed, patient)
    finally:
        for probe in probed:
            probe.close()
    answering = [host for host, probe in zip(patient.hosts, probed, strict=True) if "devices" in probe.facts]
    return [*_alone(probed, patient), *_as_ranks(patient, answering, environment)]


def _ask(probed: Sequence[Probed], patient: Patient) -> None:
    each(probed, "host", _HOST_SECONDS)
    for host in probed:  # one after the other: what takes the time of this machine would be seen as a host's
        host.ask_clock(_HOST_SECONDS)
    each(probed, "devices", _TORCH_SECONDS)
    request = {"config": patient.config_path, "overrides": patient.overrides}
    if patient.config is not None:
        each(probed, "config", _TORCH_SECONDS, **request)
    directory = "runs" if patient.config is None else patient.config.output
    name = f".hyena-ds-doctor-{secrets.token_hex(4)}"
    for question in ("disk", "seen", "clean"):  # every host has written before any looks for what the others wrote
        each(probed, question, _DISK_SECONDS, directory=directory, name=name)
    if patient.config is not None:
        _say(f"checking shards, for at most {patient.seconds:.0f} s")
        each(probed, "shards", patient.seconds + _DISK_SECONDS, seconds=patient.seconds, **request)


def _alone(probed: Sequence[Probed], patient: Patient) -> Iterator[Verdict]:
    slots = [host.slots for host in patient.hosts]
    yield from judge.problems(probed, "host")
    yield from judge.versions(probed)
    yield from judge.devices(probed, slots)
    yield from judge.clocks(probed)
    if patient.config is not None:
        yield from judge.configs(probed)
        try:
            plan_stages(patient.config, sum(slots))
        except UserError as error:
            yield Verdict("grid", f"{sum(slots)} ranks", WRONG, str(error))
    config = patient.config
    one, kept = (checkpoint_bytes(config.model), config.checkpoint.keep_last) if config else (0, 1)
    yield from judge.disks(probed, one, kept)
    yield from judge.shards(probed)


def _as_ranks(patient: Patient, hosts: Sequence[Host], environment: dict[str, str]) -> list[Verdict]:
    """What the ranks find on those of the hosts that answer."""
    ranks = sum(host.slots for host in hosts)
    if not ranks:
        return []
    if not patient.is_here and (missing := missing_programs(environment)):
        to_do = "Debian: apt-get install pdsh openssh-client; without it the ranks of each host are started there"
        return [Verdict("launcher", "this machine", WRONG, f"{missing}, so no rank was started", to_do)]
    _say(f"starting {counted(ranks, 'rank')}, for at most {patient.seconds:.0f} s")
    arguments = [f"{patient.seconds:g}"]
    if patient.config_path is not None:
        arguments += [patient.config_path, *patient.overrides]
    if patient.is_here:
        command, own = local_launch(arguments, ranks, _RANKS)
        heard = listen(command, _without_rank(own), patient.seconds)
    else:
        heard = _on_hosts(hosts, arguments, environment, patient.seconds)
    return together(heard, ranks, patient.seconds)


def _on_hosts(hosts: Sequence[Host], arguments: list[str], environment: dict[str, str], seconds: float) -> Heard:
    """As launch/hostfile.sh starts a run's."""
    own = launch_environment(environment, _SSH_SILENCE)
    with tempfile.NamedTemporaryFile("w", prefix="hyena-ds-doctor-") as hostfile, forwarded(own):
        hostfile.write("".join(f"{host.name} slots={host.slots}\n" for host in hosts))
        hostfile.flush()
        command = launch_command(Path(hostfile.name), hosts, rank_program(_RANKS, *arguments), own, ssh=True)
        heard = Heard()
        try:
            heard = listen(command, own, seconds)
        finally:
            if heard.code != 0:
                end_launch([host.name for host in hosts], own[LAUNCH], own)
    return heard


def _without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_A_RANK}


def _say(text: str) -> None:
    """Progress, beside the answer."""
    print(f"doctor: {text}", file=sys.stderr, flush=True)
