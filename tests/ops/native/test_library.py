"""Compiling at first use: once, aside, without a lock; and what is said where it cannot be."""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyena_ds.ops.native import library as module
from hyena_ds.ops.native.library import library
from hyena_ds.ops.start_check import Unusable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "hyena-ds"
    library.cache_clear()


def compiler(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program of this name before all other compilers."""
    directory.mkdir()
    path = directory / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def refused() -> Unusable:
    with pytest.raises(Unusable) as caught:
        library()
    return caught.value


def test_it_is_compiled_once_and_again_where_the_file_is_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(library(), ctypes.CDLL)
    (compiled,) = cache.iterdir()
    times: list[Path] = []
    compile_ = module._compile
    monkeypatch.setattr(module, "_compile", lambda command, path: times.append(path) or compile_(command, path))
    library.cache_clear()
    assert library().norm and times == []
    # In another directory: of a library that a process has loaded the file is not read again.
    damaged = cache.parent / "other" / "hyena-ds" / compiled.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(compiled.read_bytes()[:100])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "other"))
    library.cache_clear()
    assert library().norm and times == [damaged]
    assert list(damaged.parent.iterdir()) == [damaged] and damaged.stat().st_size == compiled.stat().st_size


def test_what_a_killed_build_left_is_no_lock(cache: Path) -> None:
    cache.mkdir()
    (cache / ".native-0123456789abcdef.so.1.partial").write_text("half")
    (cache / "lock").write_text("")
    assert library().norm


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "hyena-ds").write_text("no directory")
    assert library().norm


def test_without_a_compiler_it_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    problem = refused()
    assert str(problem) == "no C compiler (cc, gcc or clang)" and problem.cure == "install gcc or clang"


def test_a_compiler_that_fails_or_hangs_is_named_with_what_it_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path / "bin", monkeypatch, "echo 'cc1: out of wit' >&2; exit 1")
    assert str(refused()) == f"a compiler, {tmp_path}/bin/cc, that fails (cc1: out of wit)"
    assert list(cache.iterdir()) == []
    compiler(tmp_path / "slow", monkeypatch, "exec sleep 60")
    monkeypatch.setattr(module, "_SECONDS", 0.3)
    assert str(refused()) == f"a compiler, {tmp_path}/slow/cc, that took more than 0 s"
