"""What ranks on a CPU are started with: threads, allocator, cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hyena_ds.runtime.local_ranks import TUNABLES, bind_cores, cpu_settings
from tests.paths import ROOT

ALL = ":".join(f"{name}={value}" for name, value in TUNABLES.items())


@pytest.fixture(autouse=True)
def six_of_eight_cores_and_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores of which this process may use six."""
    for name in ("OMP_NUM_THREADS", "GLIBC_TUNABLES", "HYENA_BIND_CORES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(2, 8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")


@pytest.mark.parametrize(("processes", "threads"), [(1, "6"), (2, "3"), (4, "1"), (8, "1")])
def test_the_cores_a_process_may_use_are_shared_out(processes: int, threads: str) -> None:
    assert cpu_settings(processes, {}) == {"OMP_NUM_THREADS": threads, "GLIBC_TUNABLES": ALL}


def test_the_default_base_is_the_environment_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_settings(2) == {"GLIBC_TUNABLES": ALL}


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("glibc.malloc.arena_max=2", f"glibc.malloc.arena_max=2:{ALL}"),
        ("glibc.malloc.hugetlb=0", f"glibc.malloc.hugetlb=0:{ALL.partition(':')[2]}"),
        (ALL.replace("=2", "=1"), None),
        ("", None),
    ],
)
def test_a_tunable_of_the_user_wins(own: str, wanted: str | None) -> None:
    assert cpu_settings(2, {"OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": own}).get("GLIBC_TUNABLES") == wanted


def test_another_system_gets_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu_settings(2, {}) == {"OMP_NUM_THREADS": "4"}


def test_another_c_library_gets_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    assert cpu_settings(2, {}) == {"OMP_NUM_THREADS": "3"}


def test_settings_need_no_torch() -> None:
    code = "import sys, hyena_ds.runtime.local_ranks as l; l.cpu_settings(1); l.bind_cores(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("launcher", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
@pytest.mark.parametrize(
    ("switch", "ranks", "usable", "wanted"),
    [
        ("1", 3, range(8), {4, 5}),  # rank 2 of 3, two cores each
        ("1", 8, range(8), {2}),
        ("1", 9, range(8), None),
        ("1", 1, range(8), None),
        ("1", 3, range(6), None),  # somebody has bound this process already
        ("0", 3, range(8), None),
        (None, 3, range(8), None),
    ],
)
def test_a_rank_takes_its_own_share_of_cores_when_asked_to(
    launcher: str,
    switch: str | None,
    ranks: int,
    usable: range,
    wanted: set[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(usable), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: bound.append(set(cores)), raising=False)
    monkeypatch.setenv(launcher, str(ranks))
    monkeypatch.setenv("LOCAL_RANK", "2" if ranks > 2 else "0")
    if switch is not None:
        monkeypatch.setenv("HYENA_BIND_CORES", switch)
    bind_cores()
    assert bound == ([] if wanted is None else [wanted])
