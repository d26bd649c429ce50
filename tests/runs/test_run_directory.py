"""Two runs never train in one directory at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.runs.directory import RunDirectory
from tests.paths import ROOT

HOLDER = """
import sys, time
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.runs.directory import RunDirectory
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


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[1]", b"a: [", b"\0", b"[" * 5000, b""], ids=repr)
def test_a_damaged_config_of_a_run_that_has_no_checkpoint_is_one_sentence(text: bytes, directory: RunDirectory) -> None:
    config = load_yaml(str(ROOT / "configs/quickstart.yaml"), RunConfig, [f"output={directory.path.parent}"])
    directory.create(config)
    directory.config_file.write_bytes(text)
    with pytest.raises(UserError, match=r"config\.yaml: not readable as the config of a run: the file is damaged"):
        directory.check(config)
    directory.create(config)
    directory.check(config)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_stranger_in_the_place_of_the_checkpoints_is_said_before_the_first_step(
    kind: str, directory: RunDirectory
) -> None:
    config = load_yaml(str(ROOT / "configs/quickstart.yaml"), RunConfig, [f"output={directory.path.parent}"])
    directory.create(config)
    if kind == "file":
        directory.checkpoints.write_text("a stranger's")
    else:
        directory.checkpoints.symlink_to("gone")
    with pytest.raises(
        UserError, match="checkpoints: found a file, or a link that leads nowhere, wanted the directory"
    ):
        directory.check(config)
