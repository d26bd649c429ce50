"""`hyena-ds doctor [HOSTFILE] [--config CONFIG]`: what would go wrong, before it does.

    hosts --each alone, at once--> facts --compared--+
    ranks --together, as a run starts them--> findings +--> verdicts --> table or JSON, exit code 0 or 1

Every question has a time limit: a host that cannot be reached is a verdict.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.doctor import judge
from hyena_ds.doctor.hosts import Probed, each, each_clock
from hyena_ds.doctor.launch import Heard, listen
from hyena_ds.doctor.ranks_judge import together
from hyena_ds.doctor.verdict import Level, Verdict, exit_code, table, to_json
from hyena_ds.errors import UserError
from hyena_ds.runtime.hostfile import DIRECTORY, Host, environment_file, launch_command, read_hostfile
from hyena_ds.runtime.local_ranks import devices_here, local_launch, local_ranks
from hyena_ds.runtime.ssh import ARGUMENTS, LAUNCH, alive_arguments, end_launch
from hyena_ds.shipped import launch_script

_HOST_SECONDS, _TORCH_SECONDS, _DISK_SECONDS = 30.0, 120.0, 60.0
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SSH_SILENCE = 30.0


@dataclass(frozen=True)
class Patient:
    """What is looked at."""

    hosts: tuple[Host, ...] | None
    """None: this machine, without ssh."""
    config_path: str | None
    overrides: list[str]
    config: RunConfig | None
    seconds: float

    @property
    def config_arguments(self) -> list[str]:
        return [] if self.config_path is None else [self.config_path, *self.overrides]


def run(parsed: argparse.Namespace) -> int:
    """1 when something is wrong."""
    hostfiles = [word for word in parsed.words if "=" not in word]
    overrides = [word for word in parsed.words if "=" in word]
    if len(hostfiles) > 1 or (overrides and parsed.config is None):
        raise UserError(
            f"doctor: found '{' '.join(parsed.words)}', wanted at most one hostfile, and key.path=value beside --config"
        )
    config = None if parsed.config is None else load_yaml(parsed.config, RunConfig, overrides)
    hosts = read_hostfile(Path(hostfiles[0])) if hostfiles else None
    verdicts = examine(Patient(hosts, parsed.config, overrides, config, parsed.seconds))
    print(to_json(verdicts) if parsed.json else table(verdicts), flush=True)
    return exit_code(verdicts)


def examine(patient: Patient) -> list[Verdict]:
    """All verdicts. Main thread only."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    slots = [_local_slots(patient)] if patient.hosts is None else [host.slots for host in patient.hosts]
    names = [None] if patient.hosts is None else [host.name for host in patient.hosts]
    _say(f"looking at {'this machine' if patient.hosts is None else _hosts(len(names))}")
    probed = [Probed(name, environment) for name in names]
    try:
        _ask(probed, patient)
    finally:
        for host in probed:
            host.close()
    verdicts = _alone(probed, slots, patient)
    answering = [number for number, host in enumerate(probed) if "devices" in host.facts]
    return verdicts + _as_ranks(patient, answering, slots, environment)


def _ask(probed: Sequence[Probed], patient: Patient) -> None:
    each(probed, "host", _HOST_SECONDS)
    each_clock(probed, _HOST_SECONDS)
    each(probed, "devices", _TORCH_SECONDS)
    request = {"config": patient.config_path, "overrides": patient.overrides}
    if patient.config is not None:
        each(probed, "config", _TORCH_SECONDS, **request)
    where = {
        "directory": "runs" if patient.config is None else patient.config.output,
        "name": f".hyena-ds-doctor-{secrets.token_hex(4)}",
    }
    for question in ("disk", "seen", "clean"):  # every host has written before any looks for what the others wrote
        each(probed, question, _DISK_SECONDS, **where)
    if patient.config is not None:
        _say(f"checking shards, for at most {patient.seconds:.0f} s")
        each(probed, "shards", patient.seconds + _DISK_SECONDS, seconds=patient.seconds, **request)


def _alone(probed: Sequence[Probed], slots: Sequence[int], patient: Patient) -> list[Verdict]:
    verdicts = judge.unreachable(probed)
    verdicts += judge.versions(probed)
    verdicts += judge.devices(probed, slots)
    verdicts += judge.clocks(probed)
    if patient.config is not None:
        verdicts += judge.configs(probed)
        try:
            plan_stages(patient.config, sum(slots))
        except UserError as error:
            verdicts.append(Verdict("grid", f"{sum(slots)} ranks", Level.WRONG, str(error)))
    parameters = [host.facts["config"]["parameters"] for host in probed if "config" in host.facts]
    kept = 1 if patient.config is None else patient.config.checkpoint.keep_last
    verdicts += judge.disks(probed, parameters[0] if parameters else None, kept)
    return verdicts + judge.shards(probed)


def _as_ranks(
    patient: Patient, answering: Sequence[int], slots: Sequence[int], environment: dict[str, str]
) -> list[Verdict]:
    """What the ranks find, on the hosts that answer."""
    ranks = sum(slots[number] for number in answering)
    if not ranks:
        return []
    missing = [program for program in ("pdsh", "ssh") if shutil.which(program) is None]
    if patient.hosts is not None and missing:
        to_do = "Debian: apt-get install pdsh openssh-client; without it the ranks of each host are started there"
        found = f"found no {' and no '.join(missing)}, so no rank was started"
        return [Verdict("launcher", "this machine", Level.WRONG, found, to_do)]
    _say(f"starting {ranks} {'rank' if ranks == 1 else 'ranks'}, for at most {patient.seconds:.0f} s")
    arguments = [f"{patient.seconds:g}", *patient.config_arguments]
    if patient.hosts is None:
        command, own = local_launch(arguments, ranks, "hyena_ds.doctor.ranks")
        heard = listen(command, {name: value for name, value in own.items() if name not in _OF_A_RANK}, patient.seconds)
    else:
        heard = _on_hosts([patient.hosts[number] for number in answering], arguments, environment, patient.seconds)
    return together(heard, ranks, patient.seconds)


def _on_hosts(hosts: Sequence[Host], arguments: list[str], environment: dict[str, str], seconds: float) -> Heard:
    """As launch/hostfile.sh starts a run's."""
    own = {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3", **environment, LAUNCH: secrets.token_hex(8)}
    own[DIRECTORY] = str(Path.cwd())
    own[ARGUMENTS] = f"{environment.get(ARGUMENTS, '')} {alive_arguments(_SSH_SILENCE)}".strip()
    program = ["bash", str(launch_script("rank.sh")), sys.executable, "-m", "hyena_ds.doctor.ranks", *arguments]
    with tempfile.TemporaryDirectory(prefix="hyena-ds-doctor-") as directory:
        hostfile, forwarded = Path(directory) / "hosts", Path(directory) / "forwarded"
        hostfile.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts))
        forwarded.write_text(environment_file(own))
        own["DS_ENV_FILE"] = str(forwarded)  # where DeepSpeed reads what to forward
        heard = Heard()
        try:
            heard = listen(launch_command(hostfile, hosts, program, own, ssh=True), own, seconds)
        finally:
            if heard.code != 0:
                end_launch([host.name for host in hosts], own[LAUNCH], own)
    return heard


def _local_slots(patient: Patient) -> int:
    if patient.config is not None:
        return local_ranks(patient.config)
    return devices_here() or 2


def _hosts(count: int) -> str:
    return f"{count} {'host' if count == 1 else 'hosts'}"


def _say(text: str) -> None:
    """Progress, beside the answer."""
    print(f"doctor: {text}", file=sys.stderr, flush=True)
