"""The scripts of launch/: what a shell and shellcheck say of them, and a dry run of each with stand-ins for what it starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.errors import NotFiniteError, UserError
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.runtime.interruption import DEADLINE_CODE
from tests.paths import ROOT
from tests.programs import needed
from tests.training.runs import write_config

SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", f"launch/{name}"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    command = [needed("shellcheck"), "--external-sources", f"launch/{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


class Stage:
    """A PATH with stand-ins on it, and what a script says there."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.programs = directory / "bin"
        self.programs.mkdir()
        for name in ("bash", "cat", "dirname", "env", "getconf", "grep", "mktemp", "nproc", "rm", "sed"):
            (self.programs / name).symlink_to(str(shutil.which(name)))

    def stand_in(self, name: str, body: str) -> Path:
        path = self.programs / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
        return path

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": str(self.programs), "PYTHONPATH": str(ROOT), **environment}
        command = ["bash", f"launch/{script}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize(
    ("script", "ranks", "wanted"),
    [
        ("local.sh", {}, "train config.yaml name=x"),
        ("local.sh", {"RANKS": "3"}, "train config.yaml name=x local_ranks=3"),
        ("supervise.sh", {}, "supervise config.yaml name=x"),
    ],
)
def test_a_script_of_one_machine_starts_the_command(
    script: str, ranks: dict[str, str], wanted: str, stage: Stage
) -> None:
    stage.stand_in("hyena-ds", 'echo "$@"')
    done = stage.run(script, "config.yaml", "name=x", **ranks)
    assert (done.returncode, done.stdout) == (0, wanted + "\n"), done.stderr


TORCHRUN = (
    f'case "$2" in hyena_ds.runtime.torchrun) echo "$DS_ACCELERATOR $*" ;; *) exec "{sys.executable}" "$@" ;; esac'
)
"""A python that shows what torchrun would get."""


@pytest.mark.parametrize(
    ("gpu", "own", "wanted"),
    [
        (False, {}, "cpu --nnodes 1 --node-rank 0 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port 29500"),
        (True, {}, " --nnodes 1 --node-rank 0 --nproc-per-node gpu --master-addr 127.0.0.1 --master-port 29500"),
        (
            True,
            {"NNODES": "4", "NODE_RANK": "2", "RANKS": "8", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
            " --nnodes 4 --node-rank 2 --nproc-per-node 8 --master-addr a --master-port 7",
        ),
        (
            True,
            {"NNODES": "4", "JOB_COMPLETION_INDEX": "3", "DS_ACCELERATOR": "cpu"},
            "cpu --nnodes 4 --node-rank 3 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port 29500",
        ),
    ],
)
def test_torchrun_gets_the_machines_and_one_process_a_gpu(
    gpu: bool, own: dict[str, str], wanted: str, stage: Stage
) -> None:
    stage.stand_in("python", TORCHRUN)
    if gpu:
        stage.stand_in("nvidia-smi", "")
    done = stage.run("torchrun.sh", "config.yaml", "name=x", **own)
    assert done.returncode == 0, done.stderr
    accelerator, _, options = wanted.partition(" ")
    said = f"{accelerator} -m hyena_ds.runtime.torchrun {options} -m hyena_ds train config.yaml name=x\n"
    assert done.stdout == said


SRUN = 'echo "$@" >> "$STEPS"; exit "$CODE"'
SCONTROL = """
case "$1 $2" in
"show hostnames") printf 'first\\nsecond\\n' ;;
"show job") echo "JobId=7 PreemptTime=$PREEMPTED" ;;
"requeue 7") echo requeued ;;
esac
"""


class Batch:
    """What `launch/slurm.sbatch` does in an allocation of two nodes, with stand-ins for Slurm's commands."""

    def __init__(self, stage: Stage):
        self.stage = stage
        stage.stand_in("srun", SRUN)
        stage.stand_in("scontrol", SCONTROL)
        stage.stand_in("python", f'exec "{sys.executable}" "$@"')
        (stage.programs / "sleep").symlink_to(str(shutil.which("sleep")))
        self.steps = stage.directory / "steps"
        config = write_config(
            stage.directory / "config.yaml", stage.directory, supervisor={"restarts_without_progress": 0}
        )
        self.arguments = [str(config), "name=x"]

    def run(self, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        ours = {"STEPS": str(self.steps), "CODE": str(code), "PREEMPTED": "None"}
        ours["STOP_FILE"] = str(self.stage.directory / "stop")
        return self.stage.run("slurm.sbatch", *self.arguments, **{**slurm, **ours, **environment})

    def step(self) -> str:
        return self.steps.read_text()


@pytest.fixture
def batch(stage: Stage) -> Batch:
    return Batch(stage)


@pytest.mark.parametrize(
    ("own", "ranks"),
    [
        ({}, 1),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}, 4),
        ({"SLURM_NTASKS": "6"}, 3),
        ({"SLURM_GPUS_ON_NODE": "8", "RANKS": "2"}, 2),
    ],
)
def test_slurm_starts_the_same_ranks_on_every_node(own: dict[str, str], ranks: int, batch: Batch) -> None:
    done = batch.run(**own)
    assert done.returncode == 0, done.stderr
    gpus = f" --gpus-per-node={own['SLURM_GPUS_ON_NODE']}" if "SLURM_GPUS_ON_NODE" in own else ""
    assert batch.step() == (
        f"--nodes=2 --ntasks={2 * ranks} --ntasks-per-node={ranks} --distribution=block --cpu-bind=none "
        f'--kill-on-bad-exit=0{gpus} bash -c rank "$@" rank python -m hyena_ds train {" ".join(batch.arguments)}\n'
    )
    assert f"job 7, start 1: 2 x {ranks} ranks, first:20007" in done.stderr


@pytest.mark.parametrize(
    ("code", "own", "again"),
    [
        (0, {}, False),
        (UserError.exit_code, {}, False),
        (NotFiniteError.exit_code, {}, False),
        (FAULT_CODE, {}, False),
        (130, {}, False),
        (DEADLINE_CODE, {}, True),
        (138, {}, True),
        (138, {"SLURM_RESTART_COUNT": "2", "REQUEUES": "3"}, True),
        (138, {"SLURM_RESTART_COUNT": "3", "REQUEUES": "3"}, False),
        (143, {}, False),
        (143, {"PREEMPTED": "2026-11-23T21:00:00"}, True),
    ],
)
def test_slurm_requeues_a_run_that_was_interrupted_and_no_other(
    code: int, own: dict[str, str], again: bool, batch: Batch
) -> None:
    done = batch.run(code, **own)
    assert done.returncode == code, done.stderr
    assert ("requeued" in done.stdout) == again


def test_a_warning_reaches_the_ranks_through_the_stop_file(batch: Batch) -> None:
    look = 'while [ ! -e "$HYENA_STOP_FILE" ]; do sleep 0.1; done; cat "$HYENA_STOP_FILE"; exit 138'
    parent = "read -r _ _ _ parent _ < /proc/%s/stat"
    up = f"{parent % '$PPID'}; {parent % '$parent'}"  # from srun's parent, the relay, to the supervisor, to the script
    batch.stage.stand_in("srun", f'{up}; kill -USR1 "$parent"; {look}')
    done = batch.run()
    assert done.returncode == 138, done.stderr
    assert done.stdout == "10\nrequeued\n"


@pytest.mark.parametrize("arguments", [[], ["config.yaml"]])
def test_slurm_says_what_is_missing(arguments: list[str], batch: Batch) -> None:
    command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), *arguments]
    where = ROOT if not arguments else batch.stage.directory
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert ("usage: sbatch" in done.stderr) != ("submit from the repository" in done.stderr)
