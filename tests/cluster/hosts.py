"""Several hosts on one machine: each has its own address, name, processes, mounts and sshd, on a network whose links can be
cut and slowed down.

    Hosts --unshare--> a switch: a network namespace with a bridge
          --unshare--> host: network, name, processes and mounts of its own; sshd is its first process, and dies with it
    test --nsenter--> a host --ssh, pdsh, TCP--> other hosts

Nothing is named outside these namespaces, so any number of tests can do this at once; and all of it is gone with the
process that made it, however that ends. Files are shared, unless a test mounts something (`Host.mount`, `Host.small_disk`).
Needs root, and Debian's packages of tests/packages.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.cluster.late_link import UP
from tests.paths import ROOT

SECONDS = 20
"""What a host may take to start, and a command to return."""

_PROGRAMS = ("ip", "tc", "nsenter", "unshare", "setpriv", "ssh-keygen", "pdsh", "/usr/sbin/sshd")
_SSHD = """Port 22
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""
_SSH = """Host *
    IdentityFile /etc/ssh/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ConnectTimeout 5
"""
_BOOT = """set -e
hostname "$1"
mount --bind "$2/ssh" /etc/ssh
mount --bind "$2/hosts-$1" /etc/hosts
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec /usr/sbin/sshd -D -e
"""


class Host:
    """One host; `process` is the one on this machine that its end ends."""

    def __init__(self, name: str, number: int, directory: Path):
        self.name, self.address, self._port, self._directory = name, f"10.77.0.{number + 1}", f"port{number}", directory
        self._card = f"02:00:0a:4d:00:{number + 1:02x}"
        """The same after a restart: other hosts remember it."""
        self.process: subprocess.Popen[bytes]
        self.first: int
        """Its first process, by the number that this machine knows it by."""

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A short command on this host; raises with what it printed when it fails."""
        process = self.start(command, environment)
        output = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, f"{self.name}: {command}: code {process.returncode}: {output}"
        return subprocess.CompletedProcess(command, 0, output)

    def start(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.Popen[str]:
        """A command on this host, in the background; standard error goes to its output."""
        inside = ["nsenter", "-t", str(self.first), "-n", "-u", "-m", "-p", "env", "-C", str(cwd)]
        return subprocess.Popen(
            [*inside, *map(str, command)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def mount(self, source: Path, target: Path) -> None:
        """Let `target` be `source`, on this host only."""
        self.run("mount", "--bind", source, target)

    def small_disk(self, target: Path, kibibytes: int) -> None:
        """Let the directory `target` be an empty disk of that size, on this host only."""
        self.run("mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", target)

    def processes(self, of: str = "") -> list[psutil.Process]:
        """What runs on this host, with `of` in its command line."""
        try:
            space = os.readlink(f"/proc/{self.first}/ns/pid")
        except FileNotFoundError:
            return []
        found = []
        for process in psutil.process_iter():
            try:
                here = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                if here and process.status() != psutil.STATUS_ZOMBIE and of in " ".join(process.cmdline()):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def boot(self, switch: int) -> None:
        """Start the host, and plug it in."""
        self.process, self.first = _unshare(
            ["--net", "--uts", "--mount", "--pid", "--mount-proc"],
            ["bash", "-c", _BOOT, "boot", self.name, str(self._directory)],
            self._directory / f"{self.name}.log",
        )
        card = ["name", "eth0", "address", self._card, "netns", str(self.first)]
        _ip(switch, "link", "add", self._port, "type", "veth", "peer", *card)
        _ip(switch, "link", "set", self._port, "master", "switch", "up")
        _ip(self.first, "link", "set", "lo", "up")
        _ip(self.first, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip(self.first, "link", "set", "eth0", "up")

    def wait_for_sshd(self) -> None:
        deadline = time.monotonic() + SECONDS
        while "listening" not in (said := (self._directory / f"{self.name}.log").read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, f"{self.name} does not start: {said}"
            time.sleep(0.02)


class Hosts:
    """A switch with hosts `node0`, `node1`, ... A context manager."""

    def __init__(self, count: int, directory: Path):
        """`directory` is for what they need (keys, logs), and must be new."""
        self._directory = directory
        self.hosts = [Host(f"node{number}", number, directory) for number in range(count)]
        self._made: list[subprocess.Popen[bytes]] = []
        self._late: dict[str, subprocess.Popen[str]] = {}
        """The links that a program makes late, by their hosts."""

    def __enter__(self) -> Hosts:
        try:
            self._write_files()
            process, self._switch = _unshare(["--net"], ["sleep", "infinity"], self._directory / "switch.log")
            self._made.append(process)
            _ip(self._switch, "link", "add", "switch", "type", "bridge")
            _ip(self._switch, "link", "set", "switch", "up")
            for host in self.hosts:
                self._boot(host)
            for host in self.hosts:
                host.wait_for_sshd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def hostfile(self, slots: int, *numbers: int) -> Path:
        """A DeepSpeed hostfile of some hosts, by default of all."""
        chosen = [self.hosts[number] for number in numbers] or self.hosts
        path = self._directory / f"hostfile-{'-'.join(host.name for host in chosen)}-{slots}"
        path.write_text("".join(f"{host.name} slots={slots}\n" for host in chosen))
        return path

    def cut(self, host: Host) -> None:
        """Pull the host's cable out of the switch."""
        _ip(self._switch, "link", "set", host._port, "down")

    def mend(self, host: Host) -> None:
        """Put the cable back; takes away what `slow` did too."""
        self._quicken(host)
        _ip(self._switch, "link", "set", host._port, "up")

    def slow(self, host: Host, megabits: float, milliseconds: float) -> str:
        """Let the host's link carry so many megabits a second, so late, both ways; says by what."""
        self._quicken(host)
        how = ["netem", "delay", f"{milliseconds}ms", "rate", f"{megabits}mbit"]
        done = [subprocess.run(_tc(*end, "replace", *how), capture_output=True) for end in self._ends(host)]
        if all(each.returncode == 0 for each in done):
            return f"tc {' '.join(how)}"
        self._late_link(host, milliseconds / 1e3, megabits * 1e6)
        return f"late_link.py, {milliseconds} ms, {megabits} Mbit/s: this kernel has no netem"

    def kill(self, host: Host) -> None:
        """Take the host's power: no farewell leaves it, and nothing runs on it any more."""
        self.cut(host)
        host.process.kill()
        host.process.wait()
        deadline = time.monotonic() + SECONDS
        while host.processes():
            assert time.monotonic() < deadline, f"{host.name}: still runs {host.processes()}"
            time.sleep(0.02)

    def restart(self, host: Host) -> None:
        """Give a killed host its power back, and a cable that is not slow."""
        self._quicken(host)
        subprocess.run(_inside(self._switch, "ip", "link", "delete", host._port), capture_output=True)
        self._boot(host)
        host.wait_for_sshd()

    def close(self) -> None:
        for process in [*self._late.values(), *self._made]:
            _end(process)

    def _boot(self, host: Host) -> None:
        host.boot(self._switch)
        self._made.append(host.process)

    def _late_link(self, host: Host, delay: float, rate: float) -> None:
        """Between the host's port and the switch: port - a bridge - TAP, the link's program, TAP - switch."""
        near, far, bridge = (f"{name}-{host._port}" for name in ("near", "far", "late"))
        program = [sys.executable, "-m", "tests.cluster.late_link", near, far, str(delay), str(rate)]
        link = subprocess.Popen(
            # Killed with this process, whatever ends it.
            ["setpriv", "--pdeathsig", "KILL", *_inside(self._switch, *program)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the test
        )
        self._late[host.name] = link
        assert link.stdout is not None
        said = link.stdout.readline().strip()
        assert said == UP, f"{' '.join(program)}: {said}, code {link.wait()}"
        _ip(self._switch, "link", "add", bridge, "type", "bridge")
        for device, master in ((near, bridge), (far, "switch"), (host._port, bridge)):
            _ip(self._switch, "link", "set", device, "master", master)
        for device in (bridge, near, far):
            _ip(self._switch, "link", "set", device, "up")

    def _quicken(self, host: Host) -> None:
        """Take away what `slow` did."""
        if host.process.poll() is None:  # else its number may be another's
            for end in self._ends(host):
                subprocess.run(_tc(*end, "del"), capture_output=True)
        if (link := self._late.pop(host.name, None)) is not None:
            _end(link)
            _ip(self._switch, "link", "delete", f"late-{host._port}")
            _ip(self._switch, "link", "set", host._port, "master", "switch")

    def _ends(self, host: Host) -> list[tuple[int, str]]:
        return [(self._switch, host._port), (host.first, "eth0")]

    def _write_files(self) -> None:
        ssh = self._directory / "ssh"
        ssh.mkdir(parents=True)
        for key in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / key)], check=True)
        (ssh / "sshd_config").write_text(_SSHD)
        (ssh / "ssh_config").write_text(_SSH)
        for own in self.hosts:  # as Debian and Ubuntu have it: to itself, a host is 127.0.1.1
            others = "".join(f"{host.address} {host.name}\n" for host in self.hosts if host is not own)
            (self._directory / f"hosts-{own.name}").write_text(f"127.0.0.1 localhost\n127.0.1.1 {own.name}\n{others}")


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"found no {', '.join(missing)}; make test-packages installs them"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "hostname", "tried"],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return f"namespaces are not allowed here: {tried.stderr.strip()}"
    late = "tc qdisc add dev lo root netem delay 1ms || ip tuntap add late mode tap"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", late], capture_output=True, text=True)
    return f"links cannot be late here, by netem or by a TAP: {tried.stderr.strip()}" if tried.returncode else None


def _unshare(spaces: list[str], command: list[str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command in new namespaces; the process to kill, with which all of it ends, and the command's own number."""
    # Killed with this process, whatever ends it.
    bound = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "--fork", "--kill-child"]
    with log.open("wb") as output:
        process = subprocess.Popen([*bound, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + SECONDS
    while not (found := children.read_text().split()):
        assert process.poll() is None and time.monotonic() < deadline, f"{command}: {log.read_text()}"
        time.sleep(0.01)
    return process, int(found[0])


def _inside(process: int, *command: str) -> list[str]:
    return ["nsenter", "-t", str(process), "-n", *command]


def _ip(process: int, *arguments: str) -> None:
    """`ip` in a process's network."""
    done = subprocess.run(_inside(process, "ip", *arguments), capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _tc(process: int, device: str, verb: str, *discipline: str) -> list[str]:
    return _inside(process, "tc", "qdisc", verb, "dev", device, "root", *discipline)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.communicate()
