"""What somebody can do who installed the wheel and has no repository: everything, from a directory that was empty."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.launch.stage import Batch, Stage
from tests.package.installed import FILES, PACKED, Installed
from tests.paths import GENOME, ROOT

pytestmark = pytest.mark.slow
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
SMALL = (
    "model.width=16",
    "stages=[{context_length: 512, global_batch: 4, micro_batch_size: 2, steps: 2},"
    " {context_length: 8192, global_batch: 2, micro_batch_size: 1, steps: 1, sequence_parallel: 2}]",
    "validation.windows=2",
)
"""Settings that make the quick start one of seconds."""


@pytest.fixture(scope="module")
def start(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `hyena-ds init` wrote, in which the commands that it prints were typed; the run is a small one."""
    empty = tmp_path_factory.mktemp("empty")
    said = installed.run("hyena-ds", "init", "my genome's", cwd=empty)
    lines = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert [line.split()[1] for line in lines[1:]] == ["check", "prep", "train", "report"]
    changed = [f"{line} {' '.join(map(repr, SMALL))}" if " train " in line else line for line in lines]
    said = installed.run("bash", "-ec", "\n".join(changed), cwd=empty)
    assert "HyenaDNA (this run)" in said and "step 3: validation loss" in said
    return empty / "my genome's"


def test_what_is_imported_is_the_wheel_and_not_the_repository(installed: Installed, tmp_path: Path) -> None:
    program = "import sys, hyena_ds, data_prep; print(hyena_ds.__file__, data_prep.__file__, *sys.path, sep='\\n')"
    *modules, path = installed.run("python", "-c", program, cwd=tmp_path).split("\n", 2)
    assert all(Path(module).is_relative_to(installed.directory) for module in modules), modules
    assert not {str(ROOT), str(ROOT / "hyena_ds")} & set(path.splitlines())


def test_the_wheel_holds_every_file_of_the_packages_and_what_is_shipped(installed: Installed) -> None:
    wanted = {
        str(path.relative_to(ROOT)): path
        for package in ("hyena_ds", "data_prep")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "shipped" not in path.parts
    }
    shipped = [
        *(ROOT / "hyena_ds" / "shipped").glob("*.py"),
        *(ROOT / "launch").iterdir(),
        GENOME,
        GENOME.parent / "README.md",
        *(GENOME.parent / "hyenadna-chrx").glob("*.*"),
    ]
    shipped += (ROOT / "configs").rglob("*.*")
    for path in shipped:
        inside = path.relative_to(ROOT)
        wanted[str(inside if inside.parts[0] == "hyena_ds" else Path("hyena_ds/shipped") / inside)] = path
    with zipfile.ZipFile(installed.wheel) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert held == set(wanted)
        assert all(wheel.read(name) == path.read_bytes() for name, path in wanted.items())
    assert all((ROOT / name).exists() for name in (*PACKED, *FILES))


def test_what_init_writes_is_whole_or_not_there(installed: Installed, start: Path) -> None:
    written = {
        str(path.relative_to(start))
        for path in start.rglob("*")
        if path.parts[len(start.parts)] in ("configs", "assets")
    }
    assert {"configs/quickstart.yaml", "configs/prep/quickstart.yaml", f"assets/{GENOME.name}"} <= written
    assert "assets/hyenadna-chrx/model.safetensors" in written
    assert (start / "assets" / GENOME.name).read_bytes() == GENOME.read_bytes()
    said = installed.run("hyena-ds", "init", start.name, cwd=start.parent, code=2)
    assert "exists already, and nothing is overwritten; name a directory that does not exist yet" in said
    assert [path.name for path in start.parent.iterdir()] == [start.name]


def test_the_first_run_leaves_weights_that_python_loads_and_a_report(installed: Installed, start: Path) -> None:
    run = start / "runs" / "quickstart"
    assert [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ] == [1, 2, 3]
    assert (run / "report.html").stat().st_size > 10_000
    weights = run / "checkpoints" / "step-00000003" / "weights.safetensors"
    program = "import sys, torch, hyena_ds; print(hyena_ds.load_model(sys.argv[1])(torch.full((1, 8), 7)).shape)"
    assert "torch.Size([1, 8, 16])" in installed.run("python", "-c", program, weights, cwd=start)


def test_a_config_of_a_published_size_is_planned(installed: Installed, start: Path) -> None:
    said = installed.run("hyena-ds", "plan", "configs/large-1m.yaml", "--device", "h200", cwd=start)
    assert "to finish:" in said


@pytest.fixture
def stage(installed: Installed, tmp_path: Path) -> Stage:
    """Stand-ins around the installed scripts; nothing of the repository can be imported there."""
    scripts = Path(installed.run("hyena-ds", "launch", cwd=tmp_path).strip())
    assert scripts.is_relative_to(installed.directory)
    return Stage(tmp_path, str(installed.python), scripts, path=None)


def test_a_sweep_becomes_a_slurm_array_whose_tasks_find_the_scripts(
    stage: Stage, installed: Installed, start: Path
) -> None:
    command = installed.run("hyena-ds", "sweep", "configs/sweeps/contexts.yaml", "seed=7", "--slurm", cwd=start)
    assert command == "sbatch runs/contexts/array.sbatch\n"
    batch = Batch(stage)
    array = start / "runs" / "contexts" / "array.sbatch"
    batch.arguments = []
    done = batch.run(script=array, cwd=start, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    assert "hyena_ds train configs/experiments/one-context.yaml" in batch.step()
    assert all(word in batch.step() for word in ("seed=7", "stages.0.context_length=2048", "name=context-2048"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_every_installed_script(name: str, installed: Installed, tmp_path: Path) -> None:
    script = installed.run("hyena-ds", "launch", name, cwd=tmp_path).strip()
    assert Path(script).is_relative_to(installed.directory)
    installed.run("bash", "-n", script, cwd=tmp_path)


def test_the_scripts_of_one_machine_start_their_commands(stage: Stage, start: Path) -> None:
    stage.stand_in("hyena-ds", 'echo "$@"')
    assert stage.run("local.sh", "c.yaml", cwd=start, RANKS="3").stdout == "train c.yaml local_ranks=3\n"
    assert stage.run("supervise.sh", "c.yaml", cwd=start).stdout == "supervise c.yaml\n"
    shown = stage.run("rank.sh", "env", cwd=start, LOCAL_SIZE="1000").stdout
    assert "DS_ACCELERATOR=cpu" in shown and "OMP_NUM_THREADS=1" in shown


def test_torchrun_is_started_by_the_installed_relay(stage: Stage, start: Path) -> None:
    shows = f'case "$2" in hyena_ds.runtime.torchrun) echo "$@" ;; *) exec "{stage.python}" "$@" ;; esac'
    stage.stand_in("python", shows)
    done = stage.run("torchrun.sh", "c.yaml", cwd=start, RANKS="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-m hyena_ds.runtime.torchrun --nnodes 1") and done.stdout.endswith("train c.yaml\n")


def test_kubernetes_is_handed_the_config(stage: Stage, start: Path) -> None:
    done = stage.run("kubernetes.sh", "configs/quickstart.yaml", cwd=start, NODES="3", NAME="mine")
    assert done.returncode == 0, done.stderr
    assert "    name: quickstart" in done.stdout and "completions: 3" in done.stdout


def test_the_hostfile_way_reads_the_hostfile_and_says_what_is_wrong(stage: Stage, start: Path) -> None:
    stage.stand_in("python", f'exec "{stage.python}" "$@"')
    assert "usage: bash launch/hostfile.sh" in stage.run("hostfile.sh", cwd=start).stderr
    hosts = stage.directory / "hosts"
    hosts.write_text("node0 slots=2\n")
    done = stage.run("hostfile.sh", str(hosts), "configs/quickstart.yaml", "name=other", cwd=start)
    assert done.returncode == 2
    assert "this machine: found no pdsh and no ssh" in done.stderr
