"""Real runs of two ranks, under every launcher: stopped in a step, hung, killed, and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hyena_ds.parallel.listening import free_port
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.runtime.interruption import DEADLINE_CODE
from tests.paths import ROOT
from tests.training.runs import make_shards, rows, write_config

MODULE = "tests.faults.troubled_rank"
TIMEOUT = 400
"""Seconds for a launch, on a machine that has much else to do."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


class Launch:
    """A command that trains with trouble; `mark` is there once the trouble has begun."""

    def __init__(self, directory: Path, command: list[str], trouble: str, step: int, rank: int, **environment: str):
        self.mark = directory / f"mark-{time.monotonic_ns()}"
        own = {"TROUBLE": trouble, "TROUBLE_STEP": str(step), "TROUBLE_RANK": str(rank), "TROUBLE_MARK": str(self.mark)}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._marker = str(self.mark)

    def in_trouble(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not self.mark.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        output = self.process.communicate(timeout=TIMEOUT)[0]
        return self.process.returncode, output

    def left(self) -> list[psutil.Process]:
        """Processes of this launch that still run: all of them inherited its mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TROUBLE_MARK") == self._marker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def sockets(self) -> list[Any]:
        """The network sockets of its processes."""
        found: list[Any] = []
        for process in self.left():
            with contextlib.suppress(psutil.Error):
                found += process.net_connections("inet")
        return found


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    started: list[Launch] = []
    yield started
    for launch in started:
        for process in launch.left():
            process.kill()
        launch.process.wait()


def latest(run: Path) -> str:
    return (run / "checkpoints" / "latest").read_text().strip()


def test_a_run_that_is_stopped_killed_and_started_again_is_equal_to_one_that_was_left_alone(
    shards: Path, tmp_path: Path, launches: list[Launch]
) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    run = tmp_path / "runs" / "run"
    command = [sys.executable, "-m", MODULE, "train", str(config)]
    whole = Launch(tmp_path, [*command, "name=whole"], "none", -1, 0)
    launches.append(whole)
    code, output = whole.end()
    assert code == 0, output
    # The deepspeed launcher; the sixth step is long, and no signal may reach its ranks but through the relay.
    first = Launch(tmp_path, command, "sleep:4", 5, 1)
    launches.append(first)
    first.in_trouble()
    first.process.send_signal(signal.SIGTERM)
    code, output = first.end()
    assert code == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after step 6 of 10, which is saved" in output
    assert latest(run) == "step-00000006"  # where a validation is due: the next start makes up for it
    assert not first.left()
    # Bare ranks, of which one is signalled.
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        Launch(tmp_path, command, "sleep:2", 6, 0, RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in (0, 1)
    ]
    launches += ranks
    ranks[0].in_trouble()
    ranks[1].process.send_signal(signal.SIGUSR1)
    endings = [rank.end() for rank in ranks]
    assert [code for code, _ in endings] == [128 + signal.SIGUSR1] * 2, endings
    assert "stopped by SIGUSR1 after step 7 of 10" in endings[0][1]
    assert latest(run) == "step-00000007"
    # A rank is killed, and the supervisor goes on.
    again = [sys.executable, "-m", "hyena_ds", "supervise", str(config), "--", *command]
    last = Launch(tmp_path, again, "kill", 8, 1)
    launches.append(last)
    code, output = last.end()
    assert code == 0, output
    (fault,) = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert (fault["kind"], fault["rank"], fault["step"]) == ("died", 1, 9)
    assert output.count(f"hyena-ds: error: {fault['text']}") == 1
    assert output.count("starting again from step 7 in 1 s") == 1
    assert "Traceback" not in output
    assert rows(run) == rows(tmp_path / "runs" / "whole")


def test_under_torchrun_a_signal_saves_the_step(shards: Path, tmp_path: Path, launches: list[Launch]) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    launch = Launch(tmp_path, [*torchrun, "-m", MODULE, "train", str(config)], "sleep:3", 1, 1)
    launches.append(launch)
    launch.in_trouble()
    launch.process.send_signal(signal.SIGTERM)
    code, output = launch.end()
    assert code != 0
    assert "stopped by SIGTERM after step 2 of 10, which is saved" in output
    assert latest(tmp_path / "runs" / "run") == "step-00000002"
    assert not launch.left()


def bare(config: Path) -> list[str]:
    """A shell that starts two ranks with no launcher's variables but those that every launcher sets."""
    rank = f"RANK=$rank LOCAL_RANK=$rank {sys.executable} -m {MODULE} train {config}"
    return ["bash", "-c", f"for rank in 0 1; do {rank} & done; wait"]


def under_torchrun(config: Path) -> list[str]:
    torchrun = [
        sys.executable,
        "-m",
        "hyena_ds.runtime.torchrun",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    return [*torchrun, "-m", MODULE, "train", str(config)]


def under_the_launcher(config: Path) -> list[str]:
    return [sys.executable, "-m", MODULE, "train", str(config)]


@pytest.mark.parametrize("command", [under_the_launcher, bare, under_torchrun])
def test_a_run_on_one_machine_listens_on_loopback_alone(
    command: Callable[[Path], list[str]], shards: Path, tmp_path: Path, launches: list[Launch]
) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    own = {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port())} if command is bare else {}
    launch = Launch(tmp_path, command(config), "sleep:60", 1, 0, **own)
    launches.append(launch)
    listening = set()
    while not launch.mark.exists():  # the heartbeat's port is open only until the ranks have met
        listening |= {each.laddr for each in launch.sockets() if each.status == psutil.CONN_LISTEN}
        assert launch.process.poll() is None, launch.end()
        time.sleep(0.2)
    listening |= {each.laddr for each in launch.sockets() if each.status == psutil.CONN_LISTEN}
    assert len(listening) >= 3, "the store, and gloo of both ranks"
    assert {address.ip for address in listening} == {"127.0.0.1"}, listening


def test_a_rank_that_stops_answering_ends_the_run_within_the_bound_and_is_named(
    shards: Path, tmp_path: Path, launches: list[Launch]
) -> None:
    config = write_config(tmp_path / "config.yaml", shards, watchdog={"silence": 3})
    launch = Launch(tmp_path, [sys.executable, "-m", MODULE, "train", str(config)], "stop", 1, 1)
    launches.append(launch)
    launch.in_trouble()
    began = time.monotonic()
    code, output = launch.end()
    assert time.monotonic() - began < 15
    assert code not in (0, 2), output
    (said,) = [line for line in output.splitlines()[-3:] if line.startswith("hyena-ds: error: rank 1 on ")]
    assert "has been silent for" in said
    assert not launch.left()


def test_an_error_on_one_rank_is_what_the_user_sees(shards: Path, tmp_path: Path, launches: list[Launch]) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    launch = Launch(tmp_path, [sys.executable, "-m", MODULE, "train", str(config)], "raise", 1, 1)
    launches.append(launch)
    code, output = launch.end()
    assert code == FAULT_CODE
    assert output.count("Traceback") == 1 and "Connection closed" not in output
    assert "step 2, backward of micro step 2) raised ValueError: trouble" in output
    assert not launch.left()


@pytest.mark.skipif(os.environ.get("HYENA_FULL") != "1", reason="takes a minute: make test-full (HYENA_FULL=1) runs it")
def test_a_step_longer_than_the_launchers_patience_is_finished_and_saved_on_a_signal_and_at_the_deadline(
    shards: Path, tmp_path: Path, launches: list[Launch]
) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    command = [sys.executable, "-m", MODULE, "train", str(config)]
    signalled = Launch(tmp_path, [*command, "name=signalled"], "sleep:40", 3, 1)
    deadline = Launch(tmp_path, [*command, "name=deadline", "stop_after=60s"], "sleep:60", 3, 1)
    launches += [signalled, deadline]
    for launch in launches:
        launch.in_trouble()
    signalled.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, output = signalled.end()
    assert time.monotonic() - began > 31, "the step was not long"
    assert code == 128 + signal.SIGTERM and "stopped by SIGTERM after step 4 of 10, which is saved" in output, output
    assert latest(tmp_path / "runs" / "signalled") == "step-00000004"
    code, output = deadline.end()
    assert code == DEADLINE_CODE and "after step 4 of 10, which is saved" in output, output
    assert latest(tmp_path / "runs" / "deadline") == "step-00000004"
