"""Two runs never train in one directory at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.training.run_directory import RunDirectory
from tests.paths import ROOT

HOLDER = """
import sys, time
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.training.run_directory import RunDirectory
with RunDirectory(load_yaml(sys.argv[1], RunConfig, [sys.argv[2]])).held(0):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture()
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(load_yaml(str(ROOT / "configs/quickstart.yaml"), RunConfig, [f"output={tmp_path}"]))


def test_a_second_run_is_refused_with_the_first_ones_name_and_may_begin_after_it(directory: RunDirectory) -> None:
    says = r"process \d+ on .+ is training this run; wait for its end, stop it, or"
    with directory.held(0), pytest.raises(UserError, match=says), directory.held(0.3):
        pass
    with directory.held(0):
        pass


def test_a_killed_run_leaves_no_lock(directory: RunDirectory) -> None:
    command = [sys.executable, "-c", HOLDER, str(ROOT / "configs/quickstart.yaml"), f"output={directory.path.parent}"]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on "), directory.held(0):
            pass
    finally:
        holder.kill()
        holder.wait(timeout=30)
    with directory.held(5):
        pass
    directory.check(load_yaml(str(ROOT / "configs/quickstart.yaml"), RunConfig, [f"output={directory.path.parent}"]))
