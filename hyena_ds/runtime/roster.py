"""The hosts of a supervised run: those that it starts on, those that wait, and those that it has given up.

    launch command --its hostfile--> Roster --first start: all but the spares--> RUN/hosts.txt in the hostfile's place
    failure --ssh to every host, who answers?--> choose --> other hosts, and a grid for their ranks --> the next start's command

A host that is given up is not asked again: a new `hyena-ds supervise` begins with the whole hostfile. No torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hyena_ds.config.arithmetic import StagePlan, plan_stages
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.files.whole import write_whole
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.hostfile import Host, read_hostfile
from hyena_ds.runtime.ssh import problems

_SCRIPT = "hostfile.sh"
_OPTIONS = ("--hostfile", "-H")
"""DeepSpeed's own."""
_MOST_NAMED = 4
"""Hosts, or stages, that a sentence names."""


@dataclass(frozen=True)
class Layout:
    """The stages of a run on some ranks."""

    stages: tuple[StagePlan, ...]
    overrides: tuple[str, ...] = ()
    """What of the config has to change for it."""
    fits: bool = True
    """Whether it is predicted to fit into memory."""


Planner = Callable[[RunConfig, Sequence[Host], Sequence[Host]], Layout | None]
"""The stages of a run that began on the first hosts, on the others; None where a global batch divides on no grid."""


class Choice(NamedTuple):
    """Hosts to start on, and the stages there."""

    hosts: tuple[Host, ...]
    layout: Layout

    @property
    def ranks(self) -> int:
        """Ranks of all hosts."""
        return sum(host.slots for host in self.hosts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the hosts, in the order of their ranks."""
        return tuple(host.name for host in self.hosts)


def choose(
    hosts: Sequence[Host], wanted: int, fewest: int, plan: Callable[[Sequence[Host]], Layout | None]
) -> Choice | None:
    """The first `wanted` of the hosts, or as many as have a grid that fits; else as many as have a grid at all. None where
    fewer than `fewest` have one."""
    tight = None
    for count in range(min(wanted, len(hosts)), fewest - 1, -1):
        chosen = tuple(hosts[:count])
        layout = plan(chosen)
        if layout is not None and layout.fits:
            return Choice(chosen, layout)
        if layout is not None and tight is None:
            tight = Choice(chosen, layout)
    return tight


class Roster:
    """Which hosts of the launch command's hostfile the next start gets."""

    def __init__(self, config: RunConfig, command: Sequence[str], environment: Mapping[str, str], plan: Planner):
        """The command names a hostfile (`place_of_hostfile`). Raises UserError where that, or the config on it, is wrong."""
        place = place_of_hostfile(command, environment)
        assert place is not None
        self._config, self._command, self._place, self._environment = config, list(command), place, environment
        self._supervisor = config.supervisor
        self._all = read_hostfile(Path(command[place]))
        self._given_up: set[str] = set()
        self._blamed: tuple[str, int] | None = None
        """The host that the last failure was of, and the step of the newest checkpoint then."""
        self.has_left_out = False
        """Whether the next start is the first one without some hosts."""
        self._check()
        hosts = self._all[: self._wanted]
        self._plan = partial(plan, config, hosts)
        self.now = Choice(hosts, Layout(plan_stages(config, sum(host.slots for host in hosts))))

    @property
    def _wanted(self) -> int:
        return len(self._all) - self._supervisor.spare_hosts

    def _check(self) -> None:
        found, where = len(self._all), self._command[self._place]
        if self._wanted < 1:
            raise UserError(
                f"supervisor.spare_hosts: found {self._supervisor.spare_hosts} with {found} in {where}, wanted fewer than there "
                "are, so that one can start; lower it or add hosts"
            )
        if self._supervisor.fewest_hosts > self._wanted:
            raise UserError(
                f"supervisor.fewest_hosts: found {self._supervisor.fewest_hosts}, and {self._wanted} of {found} hosts in {where} "
                "are no spares, wanted at most as many; lower it, lower supervisor.spare_hosts or add hosts"
            )

    def command(self) -> list[str]:
        """The launch command for the hosts of now; writes RUN/hosts.txt where they are not the whole hostfile."""
        words, hosts = list(self._command), self.now.hosts
        if hosts != self._all:
            file = RunDirectory(self._config).hosts.absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(f"{host.name} slots={host.slots}\n" for host in hosts))
            words[self._place] = str(file)
        # An address that was set for the first host is not that of another one.
        other = hosts[0] != self._all[0] and self._environment.get("MASTER_ADDR")
        return [*(["env", "MASTER_ADDR="] if other else []), *words, *self.now.layout.overrides]

    def lost(self) -> dict[str, str]:
        """Why a run can start on a host no more, by the hosts that are not given up; asks them, which takes seconds."""
        asked = [host.name for host in self._all if host.name not in self._given_up]
        if shutil.which("ssh", path=self._environment.get("PATH")) is None:
            return {}
        return problems(asked, {"directory": Path.cwd()}, self._environment)

    def renew(self, step: int, rank: int | None) -> str | None:
        """Choose the hosts of the next start, which goes on from the checkpoint of `step`; a sentence on what changes.

        `rank` is the one that the failure was of, where that is known. None where nothing changes. Raises `NoHosts`, and gives
        up no host, where no start is possible now.
        """
        lost, before = self.lost(), self.now
        out = lost | self._again(step, rank, lost)
        choice = self._choose(out)
        if choice is None and len(out) > len(lost):
            choice = self._choose(out := lost)
        if choice is None:
            raise NoHosts(self._why_not(lost))
        self._given_up |= out.keys()
        self.now, self.has_left_out = choice, bool(out)
        if not out and choice == before:
            return None
        waiting = [host.name for host in self._all if host.name not in self._given_up and host.name not in choice.names]
        return described(before, choice, out, waiting, step)

    def _choose(self, out: Mapping[str, str]) -> Choice | None:
        there = [host for host in self._all if host.name not in out and host.name not in self._given_up]
        return choose(there, self._wanted, self._supervisor.fewest_hosts, self._plan)

    def _again(self, step: int, rank: int | None, lost: Mapping[str, str]) -> dict[str, str]:
        """The host of a failed rank that answers, if the failure before was of it too, and no checkpoint came between."""
        names = [host.name for host in self.now.hosts for _ in range(host.slots)]
        name = names[rank] if rank is not None and rank < len(names) else None
        last, self._blamed = self._blamed, None if name is None else (name, step)
        if name is None or name in lost or last != self._blamed:
            return {}
        return {name: "it answers, but two starts in a row failed there"}

    def _why_not(self, lost: Mapping[str, str]) -> str:
        there = len(self._all) - len(self._given_up | lost.keys())
        answers = f"{there} of {len(self._all)} hosts {'answers' if there == 1 else 'answer'}{_reasons(lost)}"
        if there < self._supervisor.fewest_hosts:
            return f"{answers}, wanted at least {self._supervisor.fewest_hosts} (supervisor.fewest_hosts)"
        return f"{answers}; no grid on {self._supervisor.fewest_hosts} or more (supervisor.fewest_hosts) divides the global batch"


class NoHosts(Exception):
    """No start is possible on the hosts that answer."""


def place_of_hostfile(command: Sequence[str], environment: Mapping[str, str]) -> int | None:
    """Which word of a launch command names the hostfile of one launcher for all hosts; None where none does.

    That is the one behind launch/hostfile.sh, unless NO_SSH has one started on every host, or DeepSpeed's own option of a
    launch over ssh.
    """
    for place, word in enumerate(command[:-1], start=1):
        if os.path.basename(word) == _SCRIPT:
            return None if environment.get("NO_SSH") else place
        if word in _OPTIONS and not {"--launcher", "--no_ssh"} & {part.partition("=")[0] for part in command}:
            return place
    return None


def roster_of(
    config: RunConfig,
    command: Sequence[str],
    environment: Mapping[str, str],
    plan: Planner,
) -> Roster | None:
    """The roster of a launch command; None where it names no hostfile.

    Raises UserError where the config wants spares and there is no hostfile to take them from.
    """
    if place_of_hostfile(command, environment) is not None:
        return Roster(config, command, environment, plan)
    if config.supervisor.spare_hosts:
        raise UserError(
            f"supervisor.spare_hosts: found {config.supervisor.spare_hosts}, and a launch command without a hostfile, wanted one "
            "whose last hosts are the spares: hyena-ds supervise CONFIG -- bash launch/hostfile.sh HOSTFILE CONFIG"
        )
    return None


def described(before: Choice, after: Choice, out: Mapping[str, str], waiting: Sequence[str], step: int) -> str:
    """What a start differs in from the one before it, in a sentence."""
    parts = []
    if out:
        parts.append(f"without {_listed(list(out))}{_reasons(out)}")
    if new := [name for name in after.names if name not in before.names]:
        parts.append(f"{_listed(new)} {'takes its place' if len(new) == 1 else 'take their places'}")
    elif len(after.hosts) < len(before.hosts):
        parts.append("no spare is left")
    if waiting:
        parts.append(f"{_listed(waiting)} {'waits' if len(waiting) == 1 else 'wait'}")
    now = f"{len(after.hosts):,} {'host' if len(after.hosts) == 1 else 'hosts'}"
    parts.append(f"now {now}, {after.ranks:,} {'rank' if after.ranks == 1 else 'ranks'}")
    pairs = zip(before.layout.stages, after.layout.stages, strict=True)
    changed = [
        f"stage {new.number} dp {old.data_parallel} x sp {old.config.sequence_parallel} -> "
        f"dp {new.data_parallel} x sp {new.config.sequence_parallel}"
        for old, new in pairs
        if new.end_step > step and _grid(old) != _grid(new)
    ]
    parts.append(_listed(changed) if changed else "the grid as before")
    if after.layout.overrides:
        parts.append(f"by {' '.join(after.layout.overrides)}")
    if not after.layout.fits:
        parts.append("which is predicted not to fit into memory, as no other grid is")
    parts.append("the global batch as before")
    parts.append(f"from the checkpoint of step {step:,}" if step else "from the beginning")
    return f"hosts: {', '.join(parts)}"


def _grid(plan: StagePlan) -> tuple[int, int]:
    return plan.data_parallel, plan.config.sequence_parallel


def _reasons(out: Mapping[str, str]) -> str:
    """In brackets, each reason once."""
    reasons = list(dict.fromkeys(in_one_line(reason, MOST_QUOTED) for reason in out.values()))
    return f" ({'; '.join(reasons[:_MOST_NAMED])})" if reasons else ""


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED + 1:
        names = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED:,} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
