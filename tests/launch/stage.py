"""A PATH with stand-ins for what launch scripts start, and an allocation of Slurm on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT
from tests.training.runs import write_config

PROGRAMS = ("bash", "cat", "dirname", "env", "getconf", "grep", "mktemp", "nproc", "rm", "sed", "sleep")
SRUN = 'echo "$@" >> "$STEPS"; exit "$CODE"'
SCONTROL = """
case "$1 $2" in
"show hostnames") printf 'first\\nsecond\\n' ;;
"show job") echo "JobId=7 PreemptTime=$PREEMPTED" ;;
"requeue 7") echo requeued ;;
esac
"""


class Stage:
    """A PATH with stand-ins on it, and what a script says there."""

    def __init__(
        self, directory: Path, python: str = sys.executable, scripts: Path = ROOT / "launch", path: Path | None = ROOT
    ):
        """`python` is the interpreter behind stand-ins, `path` its PYTHONPATH; `scripts` are where the launch scripts are."""
        self.directory, self.python, self.scripts = directory, python, scripts
        self._path = {} if path is None else {"PYTHONPATH": str(path)}
        self.programs = directory / "bin"
        self.programs.mkdir()
        for name in PROGRAMS:
            (self.programs / name).symlink_to(str(shutil.which(name)))

    def stand_in(self, name: str, body: str) -> Path:
        path = self.programs / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
        return path

    def run(
        self, script: str | Path, *arguments: str, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts by its name, or the script of a path."""
        own = {"PATH": str(self.programs), **self._path, **environment}
        command = ["bash", str(self.scripts / script), *arguments]
        return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=60)


class Batch:
    """What `launch/slurm.sbatch` does in an allocation of two nodes, with stand-ins for Slurm's commands."""

    def __init__(self, stage: Stage):
        self.stage = stage
        stage.stand_in("srun", SRUN)
        stage.stand_in("scontrol", SCONTROL)
        stage.stand_in("python", f'exec "{stage.python}" "$@"')
        self.steps = stage.directory / "steps"
        config = write_config(
            stage.directory / "config.yaml", stage.directory, supervisor={"restarts_without_progress": 0}
        )
        self.arguments = [str(config), "name=x"]

    def run(
        self, code: int = 0, script: str | Path = "slurm.sbatch", cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """The script in an allocation whose steps end with `code`."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        ours = {"STEPS": str(self.steps), "CODE": str(code), "PREEMPTED": "None"}
        ours["STOP_FILE"] = str(self.stage.directory / "stop")
        return self.stage.run(script, *self.arguments, cwd=cwd, **{**slurm, **ours, **environment})

    def step(self) -> str:
        """The arguments of every srun, a line each."""
        return self.steps.read_text()
