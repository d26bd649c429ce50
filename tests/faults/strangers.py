"""Strangers at the heartbeat's port of a two-rank run: what they cost it, in CPU seconds a step of its own processes.

python -m tests.faults.strangers --rounds 3 --steps 400 --idle 4000      runs of every kind in turn, a table
python -m tests.faults.strangers --attack PORT --idle 4000 --seconds 60     the attack alone

quiet      nobody calls
attacked   idle connections, and a new one for each that is closed or refused; garbage; a stream without a newline
open       the same, and the port, which closes once the ranks have met, stays open: the monitor waits for one rank more
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyena_ds.parallel.listening import free_port
from tests.paths import ROOT
from tests.training.runs import make_shards, rows, write_config

BOUND = 0.05
"""Share of the CPU seconds a step."""
TIMEOUT = 600.0
_OPENED_A_TURN = 100
_GARBAGE = (
    b"[" * 2000 + b"\n",
    b'{"token": "guess", "place": {}}\n',
    b"\xff" * 3000 + b"\n",
    b"GET / HTTP/1.1\r\n\r\n",
)


def attack(port: int, idle: int, seconds: float) -> None:
    """Call the port of this machine in every way at once; says `under attack` when the first calls are out."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, idle + 100), hard))
    held: list[socket.socket] = []
    stream: socket.socket | None = None
    end = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < end:
        if turn % 10 == 0:  # the attack shall take little of this machine itself
            held = [each for each in held if not _has_ended(each)]
        held += [_called(port) for _ in range(min(_OPENED_A_TURN, idle - len(held)))]
        if stream is None or _has_ended(stream):
            stream = _called(port)
        for data, caller in ((b"x" * 512, stream), (_GARBAGE[turn % len(_GARBAGE)], _called(port))):
            with contextlib.suppress(OSError):
                caller.send(data)
        turn += 1
        if turn == 10:
            print("under attack", flush=True)
        time.sleep(0.1)


def _called(port: int) -> socket.socket:
    caller = socket.socket()
    caller.setblocking(False)
    caller.connect_ex(("127.0.0.1", port))
    return caller


def _has_ended(caller: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        try:
            if caller.recv(1):
                return False
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
        caller.close()
        return True
    return False


@dataclass(frozen=True)
class Cost:
    """What a run's own processes spent, from its tenth step to its last."""

    seconds_a_step: float
    """CPU seconds of both ranks."""
    monitor: float
    """CPU seconds of rank 0's monitor thread a second of training."""


def one_run(directory: Path, name: str, steps: int, idle: int, kind: str) -> Cost:
    """Train `steps` steps on two ranks in a run of one kind; raises AssertionError unless it ends as planned."""
    stages = [{"context_length": 64, "steps": steps, "global_batch": 4, "micro_batch_size": 1, "sequence_parallel": 2}]
    far = {"every_steps": 100_000}
    config = write_config(
        directory / f"{name}.yaml",
        directory / "shards",
        name=name,
        stages=stages,
        checkpoint=far,
        validation={**far, "windows": 2},
    )
    port_file = directory / f"{name}.port"
    meeting = free_port()
    with contextlib.ExitStack() as ended:
        own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting), "DS_ACCELERATOR": "cpu"}
        own |= {"PORT_FILE": str(port_file), "OMP_NUM_THREADS": "1", "KEEP_OPEN": "1" if kind == "open" else ""}
        ranks = []
        for rank in (0, 1):
            command = [sys.executable, "-m", "tests.faults.strangers_rank", "train", str(config)]
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = ended.enter_context((directory / f"{name}.{rank}.txt").open("w"))
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own | place, stdout=output, stderr=output)
            ended.callback(_kill, process)
            ranks.append(process)
        deadline = time.monotonic() + TIMEOUT
        while not port_file.exists():
            assert ranks[0].poll() is None and time.monotonic() < deadline, _said(directory, name)
            time.sleep(0.02)
        if kind != "quiet":
            port, seconds = port_file.read_text(), str(TIMEOUT)
            command = [
                sys.executable,
                "-m",
                "tests.faults.strangers",
                "--attack",
                port,
                "--idle",
                str(idle),
                "--seconds",
                seconds,
            ]
            attacker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            ended.callback(_kill, attacker)
            assert attacker.stdout is not None and attacker.stdout.readline() == "under attack\n"
        samples = list(
            _samples(directory / "runs" / name, [psutil.Process(rank.pid) for rank in ranks], steps, deadline)
        )
        assert [rank.wait(TIMEOUT) for rank in ranks] == [0, 0], _said(directory, name)
    assert [row["step"] for row in rows(directory / "runs" / name) if "loss" in row] == list(range(1, steps + 1))
    assert not (directory / "runs" / name / "faults.jsonl").exists()
    (first, before), (last, after) = samples[0], samples[-1]
    monitor = json.loads(port_file.with_suffix(".cpu").read_text())
    return Cost((after - before) / (last - first), monitor)


def _samples(run: Path, ranks: list[psutil.Process], steps: int, deadline: float) -> Iterator[tuple[int, float]]:
    """Rows written, and the ranks' CPU seconds, from the tenth row on until near the end."""
    done = 0
    while done < steps - 5:
        time.sleep(0.05)
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError, psutil.Error):
            cpu = sum(sum(rank.cpu_times()[:2]) for rank in ranks)
            done = (run / "metrics.jsonl").read_bytes().count(b"\n")
            if done >= 10:
                yield done, cpu
        if any(rank.status() == psutil.STATUS_ZOMBIE for rank in ranks):
            return


def _kill(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _said(directory: Path, name: str) -> str:
    return "\n".join((directory / f"{name}.{rank}.txt").read_text()[-2000:] for rank in (0, 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", type=int, metavar="PORT")
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    if options.attack is not None:
        attack(options.attack, options.idle, options.seconds)
        return 0
    costs: dict[str, list[Cost]] = {"quiet": [], "attacked": [], "open": []}
    with tempfile.TemporaryDirectory() as place:
        make_shards(Path(place))
        for turn in range(options.rounds):
            for kind, found in costs.items():
                cost = one_run(Path(place), f"{kind}-{turn}", options.steps, options.idle, kind)
                found.append(cost)
                shown = f"{1000 * cost.seconds_a_step:8.2f} ms of CPU a step, {100 * cost.monitor:.2f} % of a core for the monitor"
                print(f"{kind:9}{shown}", flush=True)
    median = {kind: statistics.median(cost.seconds_a_step for cost in found) for kind, found in costs.items()}
    more = {kind: round(median[kind] / median["quiet"] - 1, 4) for kind in ("attacked", "open")}
    print(json.dumps({"seconds_a_step": {k: round(v, 5) for k, v in median.items()}, "more": more, "bound": BOUND}))
    return int(max(more.values()) >= BOUND)


if __name__ == "__main__":
    sys.exit(main())
