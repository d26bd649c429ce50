"""Kill a rank of a supervised run again and again; what it leaves must equal an uninterrupted run's, bit for bit.

    python -m tests.faults.kills --count 50 --seed 1

Kills fall at random moments, while a checkpoint is being written, while ranks start, and at a change of stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from tests.paths import ROOT
from tests.training.runs import make_shards, rows, train, write_config

STAGES, STEPS, SAVE_EVERY = 8, 60, 4
BEFORE_A_KILL = 300.0
"""Seconds within which a planned moment must come."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: at the first moment of its kind after `step` steps."""

    kind: str
    step: int
    rank: int
    delay: float


def plan(count: int, seed: int) -> list[Kill]:
    """A fifth during a save, a tenth each during start-up and at a stage change (at least one of each), the rest at random."""
    draw = random.Random(seed)
    saves, starts, boundaries = max(1, count // 5), max(1, count // 10), max(1, count // 10)
    kinds = ["save"] * saves + ["random"] * max(0, count - saves - starts - boundaries)
    draw.shuffle(kinds)
    total = STAGES * STEPS
    kills = [
        Kill(kind, (number + 1) * total // (len(kinds) + 2), draw.randrange(2), draw.uniform(0.0, 0.5))
        for number, kind in enumerate(kinds)
    ]
    chosen = draw.sample(range(1, STAGES), min(boundaries, STAGES - 1))
    kills += [Kill("stage change", stage * STEPS, draw.randrange(2), 0.0) for stage in chosen]
    for _ in range(starts):
        kills.append(Kill("start-up", draw.choice(kills).step, draw.randrange(2), draw.uniform(0.0, 6.0)))
    return sorted(kills, key=lambda kill: (kill.step, kill.kind == "start-up"))


def soak(count: int, seed: int, directory: Path) -> dict[str, Any]:
    """Run it all below `directory`; raises AssertionError, with the log's end, where anything differs."""
    print(f"seed {seed}: {count} kills", flush=True)
    stages = [
        {
            "context_length": 32 if number % 2 else 64,
            "steps": STEPS,
            "global_batch": 4,
            "micro_batch_size": 1,
            "sequence_parallel": 1 if number % 2 else 2,
        }
        for number in range(STAGES)
    ]
    config = write_config(
        directory / "config.yaml",
        make_shards(directory),
        stages=stages,
        validation={"every_steps": 25, "windows": 3},
        checkpoint={"every_steps": SAVE_EVERY},
        supervisor={"restarts_without_progress": 20},  # kills during saves and starts allow none
    )
    whole = train(config, "name=whole")
    assert whole.returncode == 0, whole.stderr
    began = time.monotonic()
    log = directory / "supervised.txt"
    done: Counter[str] = Counter()
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "hyena_ds", "supervise", str(config)]
        supervisor = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            run = _Run(supervisor, directory / "runs" / "run")
            for kill in plan(count, seed):
                assert run.strike(kill), f"the run ended before {kill}\n{_end(log)}"
                done[kill.kind] += 1
                print(f"{sum(done.values())}: {kill.kind}, rank {kill.rank}, after step {run.step()}", flush=True)
            code = supervisor.wait(BEFORE_A_KILL)
        finally:
            run.end()
    assert code == 0, f"exit code {code}\n{_end(log)}"
    _equal(directory / "runs" / "run", directory / "runs" / "whole")
    return {"seed": seed, "kills": dict(done), "minutes": round((time.monotonic() - began) / 60, 1)}


class _Run:
    """The supervised run, seen from outside."""

    def __init__(self, supervisor: subprocess.Popen[bytes], path: Path):
        self._supervisor = psutil.Process(supervisor.pid)
        self._poll = supervisor.poll
        self._metrics = path / "metrics.jsonl"
        self._checkpoints = path / "checkpoints"
        self._killed: set[int] = set()

    def step(self) -> int:
        """The step of the last whole row of metrics.jsonl."""
        try:
            lines = self._metrics.read_bytes().splitlines(keepends=True)
        except OSError:
            return 0
        whole = [line for line in lines[-3:] if line.endswith(b"\n")]
        return max((json.loads(line)["step"] for line in whole), default=0)

    def strike(self, kill: Kill) -> bool:
        """Wait for the moment, then kill; False when the run has ended before."""
        if kill.kind == "start-up":
            return self._when(lambda: bool(self._ranks(kill)), kill)
        if not self._until(lambda: self.step() >= kill.step and bool(self._ranks(kill))):
            return False
        if kill.kind == "save":
            return self._when(lambda: any(self._checkpoints.glob(".step-*.partial")), kill)
        return self._when(lambda: True, kill)

    def _when(self, moment: Callable[[], bool], kill: Kill) -> bool:
        while self._until(moment):
            if kill.kind in ("random", "start-up"):
                time.sleep(kill.delay)
            for rank in self._ranks(kill):
                rank.kill()
                self._killed.add(rank.pid)
                return True
        return False

    def _until(self, moment: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + BEFORE_A_KILL
        while not moment():
            if self._poll() is not None:
                return False
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.001)
        return True

    def _ranks(self, kill: Kill) -> list[psutil.Process]:
        """The living process of the rank to kill; never one that was killed before."""
        return [p for p in self._processes() if p.pid not in self._killed and _rank(p) == str(kill.rank)]

    def _processes(self) -> list[psutil.Process]:
        try:
            return self._supervisor.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        for process in [self._supervisor, *self._processes()]:  # it would start them again
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _rank(process: psutil.Process) -> str | None:
    """RANK of a trainer's rank process, None of anything else."""
    try:
        command = process.cmdline()
        if "train" not in command or any("launcher" in word for word in command):
            return None
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def _equal(ours: Path, theirs: Path) -> None:
    assert rows(ours) == rows(theirs), "the loss curves differ"
    name = f"checkpoints/step-{STAGES * STEPS:08d}/weights.safetensors"
    mine, wanted = load_file(ours / name), load_file(theirs / name)
    assert mine.keys() == wanted.keys()
    assert all((mine[key] == wanted[key]).all() for key in wanted), "the weights differ"


def _end(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-40:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(soak(options.count, options.seed, Path(place))))
