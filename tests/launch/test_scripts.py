"""The scripts of launch/: what a shell and shellcheck say of them, and a dry run of each with stand-ins for what it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.errors import NotFiniteError, UserError
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.runtime.interruption import DEADLINE_CODE
from tests.launch.stage import Batch, Stage
from tests.paths import ROOT
from tests.programs import needed

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "usage: sbatch"), (["config.yaml"], "no-python has no hyena-ds; submit with its environment, or set PYTHON")],
)
def test_slurm_says_what_is_missing(arguments: list[str], said: str, batch: Batch) -> None:
    done = batch.stage.run("slurm.sbatch", *arguments, PYTHON="no-python")
    assert done.returncode == 2
    assert said in done.stderr


def test_slurm_finds_the_other_scripts_wherever_its_copy_and_the_job_are(batch: Batch) -> None:
    """Slurm runs a copy; the ranks of a CPU source launch/cpu.sh."""
    copy = batch.stage.directory / "slurm_script"
    shutil.copy(ROOT / "launch" / "slurm.sbatch", copy)
    batch.stage.stand_in("srun", 'while [ "$1" != bash ]; do shift; done; exec "$@"')
    shows = f'[ "$3" != train ] || {{ echo "$DS_ACCELERATOR $OMP_NUM_THREADS $LOCAL_WORLD_SIZE"; exit; }}; exec "{sys.executable}" "$@"'
    batch.stage.stand_in("python", shows)
    done = batch.run(
        script=copy, cwd=batch.stage.directory, SLURM_PROCID="0", SLURM_NTASKS="2", SLURM_LOCALID="0", SLURM_NODEID="0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpu", str(len(os.sched_getaffinity(0))), "1"]


def test_a_rank_starts_in_the_directory_that_it_is_given(stage: Stage) -> None:
    directory = stage.directory / "two words $HOME"
    directory.mkdir()
    stage.scripts = Path("launch")  # as somebody types it; the script sources another one beside it
    done = stage.run("rank.sh", "bash", "-c", "pwd", HYENA_DIRECTORY=str(directory))
    assert (done.returncode, done.stdout) == (0, f"{directory}\n"), done.stderr
    assert stage.run("rank.sh", "bash", "-c", "pwd").stdout == f"{ROOT}\n"
