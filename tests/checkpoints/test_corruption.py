"""Whatever happens to a checkpoint's bytes is noticed, named, and noticed without a process group."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from hyena_ds.checkpoints.directory import problem_of
from hyena_ds.checkpoints.manifest import read_manifest, write_manifest
from tests.checkpoints.corruption import COUNT, KINDS, damage, damaged_copies

FILES = [
    "manifest.json",
    "run_state.json",
    "weights.safetensors",
    "state-00000-of-00002.safetensors",
    "state-00001-of-00002.safetensors",
]
STEP = "step-00000002"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_damage_of_every_kind_to_every_file_is_named(file: str, kind: str, written: Path, tmp_path: Path) -> None:
    copy = tmp_path / STEP
    shutil.copytree(written / STEP, copy)
    assert sorted(path.name for path in copy.iterdir()) == sorted(FILES)
    assert problem_of(copy, first=0) is None
    damage(copy, written / "step-00000001", file, kind, random.Random(f"{file} {kind}"))
    problem = problem_of(copy, first=0)
    assert problem is not None and problem.startswith(f"{copy / file}: "), problem


@pytest.mark.parametrize("file", FILES)
def test_a_pipe_in_the_place_of_a_file_is_named_and_waited_for_by_nobody(
    file: str, written: Path, tmp_path: Path
) -> None:
    copy = tmp_path / STEP
    shutil.copytree(written / STEP, copy)
    (copy / file).unlink()
    os.mkfifo(copy / file)
    problem = problem_of(copy, first=0)
    assert problem is not None and problem.startswith(f"{copy / file}: "), problem


def test_random_damage_is_named_and_at_once(written: Path, tmp_path: Path) -> None:
    for copy, done in damaged_copies(written / STEP, written / "step-00000001", tmp_path, COUNT, seed=COUNT):
        began = time.perf_counter()
        problem = problem_of(copy, first=0)
        assert problem is not None and problem.startswith(f"{copy / done.file}: "), (done, problem)
        assert time.perf_counter() - began < 5.0


@pytest.mark.slow
def test_every_byte_of_a_manifest_counts(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / STEP
    shutil.copytree(written / STEP, copy)
    whole = (copy / "manifest.json").read_bytes()
    for at in range(len(whole)):
        (copy / "manifest.json").write_bytes(whole[:at] + bytes([whole[at] ^ 3]) + whole[at + 1 :])
        assert problem_of(copy) is not None, at


def test_a_whole_checkpoint_under_the_name_of_another_step_is_refused(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "step-00000001", tmp_path / STEP)
    found = problem_of(tmp_path / STEP)
    assert found is not None and "found the manifest of step 1, wanted that of step-00000002" in found


def test_a_manifest_of_another_format_is_refused_with_both(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / STEP
    shutil.copytree(written / STEP, copy)
    manifest = read_manifest(copy)
    monkeypatch.setattr("hyena_ds.checkpoints.manifest.FORMAT", "hyena-ds checkpoint 99")
    write_manifest(copy, manifest.run, manifest.step, manifest.files)
    monkeypatch.undo()
    found = problem_of(copy)
    assert found is not None and "found format 'hyena-ds checkpoint 99', wanted 'hyena-ds checkpoint 2'" in found


def test_the_ranks_share_of_the_checksums_covers_every_file(written: Path, tmp_path: Path) -> None:
    for file in FILES[2:]:  # the manifest and the run state are read by all
        copy = tmp_path / file / STEP
        shutil.copytree(written / STEP, copy)
        damage(copy, written / "step-00000001", file, "flip", random.Random(1))
        assert sum(problem_of(copy, first=rank, every=3) is not None for rank in range(3)) == 1
