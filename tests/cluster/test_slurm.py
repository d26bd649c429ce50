"""`sbatch launch/slurm.sbatch CONFIG` on a real Slurm: preempted, warned, at its time limit, requeued by itself, and
finished as if nothing had been."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.slurm import GPUS, Slurm, need_slurm
from tests.paths import ROOT
from tests.training.runs import make_shards, rows, train, write_config

SCRIPT = "launch/slurm.sbatch"
TIMEOUT = 400
STEPS = 400
FEW_STEPS = 120
LIMIT_MINUTES = 6
"""A minute more than the warning that the script asks for: with less, a job is warned at the first look."""
WARNED_SECONDS = 30
"""After the start, or up to 30 later: slurmctld looks every 30 seconds, and warns those for whom the next look is too late."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    need_slurm()
    with tempfile.TemporaryDirectory(prefix="slurm-") as directory, Slurm(Path(directory)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def write_long(directory: Path, shards: Path, steps: int, **changes: Any) -> Path:
    """The config of a run that saves nothing unless it is stopped."""
    stages = [{"context_length": 64, "steps": steps, "global_batch": 4, "micro_batch_size": 2, "sequence_parallel": 2}]
    never = {"every_steps": 10 * steps}
    return write_config(directory / "config.yaml", shards, stages=stages, validation=never, checkpoint=never, **changes)


class Job:
    """A submitted run."""

    def __init__(self, slurm: Slurm, directory: Path, *arguments: str, **environment: str):
        self.slurm = slurm
        self.log = directory / "job.log"
        settings = {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names are known to Slurm alone
            "STOP_FILE": str(directory / "stop"),
            "OMP_NUM_THREADS": "1",
            "TORCH_EXTENSIONS_DIR": str(directory / "extensions"),
            **environment,
        }
        self.number = slurm.submit(f"--output={self.log}", *arguments, **settings)

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait for it, as long as the job is not over."""
        deadline = time.monotonic() + TIMEOUT
        while not holds():
            over = self.over()
            if (over or time.monotonic() > deadline) and not holds():
                raise AssertionError(
                    f"waited for: {what}; {self.slurm.job(self.number)}\n{self.said()}\n{self.slurm.logs()}"
                )
            time.sleep(0.2)

    def over(self) -> bool:
        return self.slurm.job(self.number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def ended(self) -> dict[str, str]:
        """What Slurm knows of the job once it is over."""
        self.until("the end of the job", self.over)
        return self.slurm.job(self.number)

    def seconds(self) -> int:
        """How long ago it was started the last time, of its limit."""
        hours, minutes, seconds = map(int, self.slurm.job(self.number)["RunTime"].split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def steps(run: Path) -> int:
    """How many steps a run without validation has done."""
    return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0


@contextmanager
def held_ranks(stop_file: Path) -> Iterator[None]:
    """The ranks of the run with this stop file stand still."""
    held = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("HYENA_STOP_FILE") == str(stop_file) and "RANK" in environment:
            process.suspend()
            held.append(process)
    assert held
    try:
        yield
    finally:
        for process in held:
            process.resume()


def test_a_preempted_job_saves_requeues_itself_and_ends_as_if_nothing_had_been(
    slurm: Slurm, shards: Path, tmp_path: Path
) -> None:
    config, run = write_long(tmp_path, shards, STEPS), tmp_path / "runs" / "run"
    whole = train(config, "name=whole")
    assert whole.returncode == 0, whole.stderr
    job = Job(slurm, tmp_path, "--nodes=2", "--ntasks-per-node=1", SCRIPT, str(config))
    # Slurm's own preemption with a grace time: SIGTERM to the ranks.
    job.until("the first steps", lambda: steps(run) >= 3)
    other = slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=none", "--wrap=true")
    job.until("a second start", lambda: "start 2: 2 x 1 ranks" in job.said())
    assert "stopped by SIGTERM after step " in job.said()
    assert "preempted: requeueing job" in job.said()
    assert slurm.job(other)["JobState"] == "COMPLETED"
    before = steps(run)
    assert 3 <= before < STEPS
    # The warning that the script asks for, to the batch shell.
    job.until("further steps", lambda: steps(run) >= before + 3)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), job.said()
    assert "stopped by SIGUSR1 after step " in job.said()
    assert "warned: requeueing job" in job.said()
    assert f"resuming after step {before} " in job.said()
    assert rows(run) == rows(tmp_path / "runs" / "whole")
    assert not (tmp_path / "extensions").exists()  # nothing is compiled at a start


@pytest.mark.skipif(os.environ.get("HYENA_FULL") != "1", reason="takes minutes: make test-full (HYENA_FULL=1) runs it")
def test_every_start_is_warned_before_slurm_s_own_time_limit_and_the_job_ends_as_if_it_had_none(
    slurm: Slurm, shards: Path, tmp_path: Path
) -> None:
    # From the first steps until the warning, one step takes as long as that does.
    patient = {"silence": 300, "step": 300}
    config, run = write_long(tmp_path, shards, FEW_STEPS, watchdog=patient), tmp_path / "runs" / "run"
    whole = train(config, "name=whole")
    assert whole.returncode == 0, whole.stderr
    job = Job(slurm, tmp_path, f"--time={LIMIT_MINUTES}", "--nodes=2", "--ntasks-per-node=1", SCRIPT, str(config))
    saved: list[int] = []
    for start in (1, 2):
        wanted = steps(run) + 3
        job.until("the first steps of a start", lambda wanted=wanted: steps(run) >= wanted)
        with held_ranks(tmp_path / "stop"):
            job.until("the warning", (tmp_path / "stop").exists)
            assert job.seconds() >= WARNED_SECONDS
        job.until("another start", lambda start=start: f"start {start + 1}: 2 x 1 ranks" in job.said())
        saved.append(steps(run))
    ended = job.ended()
    assert ended["JobState"] == "COMPLETED" and saved[1] < FEW_STEPS, job.said()
    assert job.said().count("warned: requeueing job") == int(ended["Restarts"]) >= 2
    for step in saved:
        assert f"stopped by SIGUSR1 after step {step} of " in job.said()
        assert f"resuming after step {step} " in job.said()
    assert rows(run) == rows(tmp_path / "runs" / "whole")


def test_a_users_mistake_ends_the_job_and_is_not_tried_again(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    ended = (job := Job(slurm, tmp_path, "--ntasks-per-node=1", SCRIPT, str(config))).ended()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), job.said()
    assert job.said().count("hyena-ds: error: ") == 1
    assert "sequence_parallel" in job.said()


class Ranks:
    """A job whose ranks only write down what they find; `seen` is their environments, in the order of their numbers."""

    def __init__(self, slurm: Slurm, directory: Path, *options: str):
        python = directory / "python"
        show = f'env > "{directory}/$RANK.env"'
        lines = ("#!/usr/bin/env bash", f'[ "$2 $3" = "hyena_ds train" ] || exec "{sys.executable}" "$@"', show)
        python.write_text("\n".join(lines) + "\n")
        python.chmod(0o755)
        config = write_config(directory / "config.yaml", directory)
        job = Job(slurm, directory, *options, SCRIPT, str(config), PYTHON=str(python))
        ended = job.ended()
        assert ended["JobState"] == "COMPLETED", job.said()
        files = sorted(directory.glob("*.env"), key=lambda file: int(file.stem))
        self.seen = [dict(re.findall(r"^(\w+)=(.*)$", file.read_text(), re.MULTILINE)) for file in files]

    def column(self, name: str) -> list[str | None]:
        return [seen.get(name) for seen in self.seen]


@pytest.mark.parametrize(
    ("options", "ranks"),
    [([], 4), (["--gpus-per-node=4"], 4), (["--ntasks=2", "--gpus-per-task=1"], 2), (["--ntasks-per-node=3"], 3)],
)
def test_there_is_a_rank_for_each_gpu_and_every_rank_sees_all_of_its_node(
    options: list[str], ranks: int, slurm: Slurm, tmp_path: Path
) -> None:
    job = Ranks(slurm, tmp_path, "--partition=gpu", *options)
    numbers = [str(rank) for rank in range(ranks)]
    assert job.column("RANK") == job.column("LOCAL_RANK") == numbers
    assert job.column("WORLD_SIZE") == job.column("LOCAL_WORLD_SIZE") == [str(ranks)] * ranks
    assert job.column("CUDA_VISIBLE_DEVICES") == [",".join(map(str, range(len(GPUS))))] * ranks


def test_ranks_are_numbered_node_after_node_and_share_what_they_have_to(slurm: Slurm, tmp_path: Path) -> None:
    job = Ranks(slurm, tmp_path, "--nodes=2", "--ntasks-per-node=2", "--distribution=cyclic")
    assert job.column("SLURMD_NODENAME") == ["node1", "node1", "node2", "node2"]
    assert job.column("RANK") == ["0", "1", "2", "3"]
    assert job.column("LOCAL_RANK") == ["0", "1", "0", "1"]
    assert job.column("WORLD_SIZE") == ["4"] * 4 and job.column("LOCAL_WORLD_SIZE") == ["2"] * 4
    assert len(set(job.column("MASTER_PORT"))) == 1 and job.column("MASTER_ADDR") == ["127.0.0.1"] * 4
    assert job.column("HYENA_STOP_FILE") == [str(tmp_path / "stop")] * 4
    # The clock and the processes of the first node mean nothing to the second.
    assert [started is not None for started in job.column("HYENA_STARTED")] == [True, True, False, False]
    assert job.column("HYENA_RELAY_PID") == [None] * 4
