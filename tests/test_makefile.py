"""What `make` says when something that it needs is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.paths import ROOT


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


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


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = _make("train", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}")
    assert result.returncode != 0
    assert "is older than 3.11" in result.stderr
