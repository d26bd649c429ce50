"""A real Slurm on this machine: munged, slurmctld and two slurmd, started for a test and ended after it.

    Slurm(directory) --slurm.conf, munge key, ports, state of its own--> daemons in the foreground --> sbatch, squeue, ...

Each node is a slurmd of this one machine (Debian's Slurm is built for that). Two are in the partition `low`, whose jobs are
requeued, after a grace time, for those of `high`; the third, in `gpu`, takes four device files for GPUs. Nothing of an
installed Slurm is read or touched.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hyena_ds.parallel.listening import free_port
from tests.paths import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "scancel", "srun")
NODES = {"node1": "", "node2": "", "node3": "Gres=gpu:4"}
GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
UP_SECONDS = 60

_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials are void: 2 minutes, if nothing else is said.
AuthInfo=socket={munge},cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
{parameters}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
GresTypes=gpu
{nodes}
PartitionName=low Nodes=node1,node2 Default=YES PriorityTier=1 GraceTime=120 MaxTime=INFINITE
PartitionName=high Nodes=node1,node2 PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
PartitionName=gpu Nodes=node3 MaxTime=INFINITE
"""


def program(name: str) -> str | None:
    """Where an installed program is; daemons are not on every user's PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def need_slurm() -> None:
    """Skip the calling test where Slurm is not installed; fail it where tests of clusters must run (CI=true)."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if not missing:
        return
    reason = f"found no {', '.join(missing)}; make test-packages installs Slurm"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Slurm:
    """A cluster of three nodes. `directory` has a short path: it holds sockets."""

    def __init__(self, directory: Path, parameters: str = ""):
        """`parameters`: SlurmctldParameters."""
        self.directory = directory
        self._daemons: list[subprocess.Popen[bytes]] = []
        munge = directory / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(secrets.token_bytes(64))
        (munge / "key").chmod(0o600)
        (directory / "state").mkdir()
        for node in NODES:
            (directory / node).mkdir()
        ports: set[int] = set()
        while len(ports) <= len(NODES):
            ports.add(free_port())
        own, *of_nodes = ports
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=2000 {gres}"
            for (node, gres), port in zip(NODES.items(), of_nodes, strict=True)
        )
        text = _SLURM_CONF.format(
            host=host,
            port=own,
            user=getpass.getuser(),
            munge=munge / "socket",
            directory=directory,
            nodes=nodes,
            parameters=f"SlurmctldParameters={parameters}" if parameters else "",
        )
        self.conf = directory / "slurm.conf"
        self.conf.write_text(text)
        (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # which no plugin above makes use of
        (directory / "gres.conf").write_text("".join(f"NodeName=node3 Name=gpu File={file}\n" for file in GPUS))
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Slurm:
        try:
            munge = self.directory / "munge"
            files = [f"--{name}-file={munge / name}" for name in ("key", "log", "pid", "seed")]
            # --force: the directory of a test is readable by its owner alone, which is not to munged's taste.
            self._start("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
            self._until("munged has a socket", (munge / "socket").exists)
            self._start("slurmctld", "-D", "-i", "-f", str(self.conf))
            for node in NODES:
                self._start("slurmd", "-D", "-N", node, "-f", str(self.conf))
            self._until("all nodes are idle", lambda: self._idle() == len(NODES))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scancel", "--user", getpass.getuser())
        self._end()

    def run(self, name: str, *arguments: str, **environment: str) -> str:
        """Output of a command of Slurm's."""
        done = subprocess.run(
            [str(program(name)), *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise AssertionError(f"{name} {' '.join(arguments)}: {done.stderr or done.stdout}\n{self.logs()}")
        return done.stdout.strip()

    def submit(self, *arguments: str, **environment: str) -> str:
        """Number of a new job."""
        return self.run("sbatch", "--parsable", *arguments, **environment)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        ends = []
        for path in sorted(self.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            ends.append("\n".join([f"--- {path.name}", *lines[-15:]]))
        return "\n".join(ends)

    def _start(self, name: str, *arguments: str) -> None:
        log = self.directory / f"{len(self._daemons)}-{name}.log"
        with log.open("wb") as output:
            command = [str(program(name)), *arguments]
            self._daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            )

    def _idle(self) -> int:
        try:
            rows = self.run("sinfo", "--noheader", "--Node", "--format", "%N %T").splitlines()
        except (AssertionError, subprocess.SubprocessError):  # slurmctld does not answer yet
            return 0
        return len({row for row in rows if row.endswith(" idle")})  # a node has a row for each of its partitions

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while not holds():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise AssertionError(f"waited for: {what}; ended: {dead}\n{self.logs()}")
            time.sleep(0.2)

    def _end(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._left():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _left(self) -> list[psutil.Process]:
        """What the daemons started, wherever it went: all of it inherited the name of this cluster's slurm.conf."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == str(self.conf):
                    found.append(process)
            except psutil.Error:
                continue
        return found
