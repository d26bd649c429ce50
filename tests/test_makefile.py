"""What `make` says when something that it needs is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

NAMES = ("python3", "python3.11", "python3.12", "python3.13", "python3.14")


def _make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "PYTHON"} | environment
    return subprocess.run(["make", *arguments], cwd=ROOT, env=own, capture_output=True, text=True, timeout=60)


def _path(directory: Path, *good: str) -> str:
    """A PATH on which every Python is a stand-in that fails, as an old one and a shim without one do, but the good ones."""
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_text(f"#!/bin/sh\nexit {0 if name in good else 127}\n")
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


@pytest.mark.parametrize("good", [("python3",), ("python3.14",), ("python3.12", "python3.13"), NAMES])
def test_the_first_python_that_runs_and_is_new_enough_is_taken_without_its_name(
    good: tuple[str, ...], tmp_path: Path
) -> None:
    result = _make("-n", "train", f"VENV={tmp_path / 'venv'}", PATH=_path(tmp_path / "bin", *good))
    assert result.returncode == 0, result.stderr
    assert f" {good[0]} -m venv {tmp_path / 'venv'}" in result.stdout.replace("\t", " ")


def test_a_machine_without_a_python_of_3_11_is_told_which_names_were_tried(tmp_path: Path) -> None:
    result = _make("train", f"VENV={tmp_path / 'venv'}", PATH=_path(tmp_path / "bin"))
    assert result.returncode != 0
    assert f"found no Python 3.11 or newer, tried {' '.join(NAMES)}; install one, or name one" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_not_there_is_named_with_the_cure(tmp_path: Path) -> None:
    result = _make("train", f"VENV={tmp_path / 'venv'}", "PYTHON=python-that-is-not-there")
    assert result.returncode != 0
    assert "found no python-that-is-not-there; install Python 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_bench_without_the_published_code_says_what_to_clone(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "installed").touch()
    result = _make("bench", f"VENV={venv}", "-o", str(venv / "installed"))
    assert result.returncode != 0
    assert "clone HazyResearch/hyena-dna and say where: make bench REFERENCE=DIR" in result.stderr


def test_the_torch_of_a_virtual_environment_is_not_taken_for_the_machines(tmp_path: Path) -> None:
    """An environment made of it would not see that torch, and install another one without the tested versions."""
    assert sys.prefix != sys.base_prefix, "the tests run in a virtual environment, which has torch"
    inside = tmp_path / "python"
    inside.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nexit 1\n')
    inside.chmod(0o755)
    result = _make("train", f"VENV={tmp_path / 'venv'}", f"PYTHON={inside}")
    assert result.returncode != 0
    assert "make: installing into" in result.stdout and "already has" not in result.stdout


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = _make("train", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}")
    assert result.returncode != 0
    assert "is older than 3.11" in result.stderr
