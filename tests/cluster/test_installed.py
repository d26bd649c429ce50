"""The installed wheel on two hosts: started in a directory without the repository, stopped, and resumed."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.launches import STEPS, Launch, Reference, are_equal, left, losses, write_run
from tests.package.installed import Installed


@pytest.mark.slow
def test_the_installed_package_trains_on_two_hosts_and_resumes(
    hosts_of: Callable[[int], Hosts], single: Reference, installed: Installed, tmp_path: Path
) -> None:
    here = tmp_path / "without the repository"
    here.mkdir()
    write_run(here, single.shards, output="runs", watchdog={"silence": 10})
    script = installed.run("hyena-ds", "launch", "hostfile.sh", cwd=here).strip()
    hosts = hosts_of(2)

    def launch(reach: int) -> Launch:
        launched = Launch(
            hosts[0],
            hosts.hostfile(2),
            "config.yaml",
            python=installed.python,
            script=script,
            cwd=here,
            PYTHONPATH="",
            STOP_FILE=str(here / "stop"),
        )
        launched.reach(here / "runs" / "run", reach)
        return launched

    first = launch(reach=4)
    commands = [shlex.join(process.cmdline()) for host in hosts.hosts for process in host.processes("hyena_ds train")]
    assert commands and all(str(installed.directory) in command for command in commands), commands
    (here / "stop").write_text(f"{signal.SIGUSR1:d}\n")
    code, output = first.end()
    assert code == 138, output
    assert 4 <= len(losses(here / "runs" / "run")) < STEPS
    (here / "stop").unlink(missing_ok=True)
    code, output = launch(reach=5).end()
    assert code == 0, output
    assert are_equal(losses(here / "runs" / "run"), single.losses)
    assert not left(*hosts.hosts)
