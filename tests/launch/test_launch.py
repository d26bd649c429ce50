"""What launchers hand to their ranks: this machine's launcher, `launch/cpu.sh`, `launch/rank.sh`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.runtime import local_ranks
from hyena_ds.runtime.local_ranks import cpu_settings, local_launch, start_local_ranks, usable_cores
from tests.paths import ROOT

NAMES = ("OMP_NUM_THREADS", "GLIBC_TUNABLES")
OTHER = "glibc.malloc.arena_max=2"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="settings of Linux")


@pytest.fixture(autouse=True)
def no_settings_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "HYENA_BIND_CORES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)


def test_launched_ranks_have_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ranks, "devices_here", lambda: 0)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HYENA_BIND_CORES", "1")
    settings = cpu_settings(2)
    assert start_local_ranks([str(tmp_path)], 2, module="tests.launch.rank_settings") == 0
    ranks: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert {name: rank[name] for name in settings} == settings
        assert (rank["mapped"] == 0) == ("GLIBC_TUNABLES" in settings)
    cores = usable_cores()
    if len(cores) == os.cpu_count() and len(cores) > 1:
        assert not set(ranks[0]["cores"]) & set(ranks[1]["cores"])


@pytest.mark.parametrize(("visible", "wanted"), [(None, "0,1"), ("", "0,1"), ("5,GPU-8932f937,6", "5,GPU-8932f937")])
def test_ranks_get_the_gpus_that_the_user_left_visible(
    visible: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ranks, "devices_here", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    _, environment = local_launch([], 2, "hyena_ds")
    assert environment["CUDA_VISIBLE_DEVICES"] == wanted


def test_no_torch_is_imported_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ranks, "_DRIVERS", ("/dev/no-such-driver*",))
    monkeypatch.setattr("hyena_ds.parallel.devices.device_count", lambda: pytest.fail("torch was asked"))
    assert local_ranks.devices_here() == 0


def test_torch_counts_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ranks, "_DRIVERS", ("/dev/null*",))
    monkeypatch.setattr("hyena_ds.parallel.devices.device_count", lambda: 4)
    assert local_ranks.devices_here() == 4


@pytest.mark.parametrize("processes", [1, 64])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"OMP_NUM_THREADS": "3", "GLIBC_TUNABLES": ""},
        {"GLIBC_TUNABLES": OTHER},
        {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold=1:{OTHER}:glibc.malloc.hugetlb=0"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1:glibc.malloc.mmap_threshold=2:glibc.malloc.hugetlb=0"},
    ],
)
def test_the_shell_snippet_agrees_with_the_function(processes: int, own: dict[str, str]) -> None:
    assert _sourced(f"source launch/cpu.sh {processes}", own) == {**own, **cpu_settings(processes, own)}


def test_the_shell_snippet_counts_the_cores_it_may_use() -> None:
    core = usable_cores()[0]
    assert _sourced(f"taskset -cp {core} $$ >/dev/null; source launch/cpu.sh 1", {})["OMP_NUM_THREADS"] == "1"


def _sourced(command: str, own: dict[str, str]) -> dict[str, str]:
    """The settings that a child of bash sees after `command`."""
    show = f'"{sys.executable}" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    result = subprocess.run(
        ["bash", "-euc", f"{command}; {show}"], cwd=ROOT, env={"PATH": os.environ["PATH"], **own}, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    seen = json.loads(result.stdout)
    return {name: seen[name] for name in NAMES if name in seen}


@pytest.mark.parametrize(
    ("gpu", "own", "on_gpu"),
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"DS_ACCELERATOR": "cpu"}, False),
        (False, {"DS_ACCELERATOR": "cuda"}, True),
        (False, {"OMP_NUM_THREADS": "7", "GLIBC_TUNABLES": OTHER}, False),
    ],
)
def test_a_host_gives_its_ranks_the_settings_unless_it_has_gpus(
    gpu: bool, own: dict[str, str], on_gpu: bool, tmp_path: Path
) -> None:
    for name in ("bash", "dirname", "getconf", "nproc", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    if gpu:
        (tmp_path / "nvidia-smi").symlink_to(str(shutil.which("true")))
    environment = {"PATH": str(tmp_path), "LOCAL_SIZE": "2", **own}
    command = ["bash", "launch/rank.sh", "env", "-0"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    seen = dict(line.split("=", 1) for line in result.stdout.split("\0") if line)
    settings = {} if on_gpu else {"DS_ACCELERATOR": "cpu", **cpu_settings(2, own)}
    assert {name: seen[name] for name in (*NAMES, "DS_ACCELERATOR") if name in seen} == {**own, **settings}
    assert (seen.get("CUDA_VISIBLE_DEVICES") == "") == (not on_gpu)
