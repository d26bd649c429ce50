"""Whatever happens to a checkpoint's bytes is noticed, named, and noticed without a process group."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyena_ds.checkpoints.choice import _problem_of_share
from hyena_ds.checkpoints.directory import problem_of
from hyena_ds.checkpoints.manifest import joined, read_manifest, read_outline, write_file, write_manifest
from hyena_ds.parallel.devices import Compute
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


NODES = ((0, 1), (2, 3))


def share_of(checkpoint: Path, rank: int) -> str | None:
    """What a rank of four on two nodes finds wrong with its share of the files and of their parts."""
    return _problem_of_share(
        read_outline(checkpoint), Compute(torch.device("cpu"), "gloo", rank, 4, 0, NODES), sums=True
    )


@pytest.fixture()
def of_parts(written: Path, tmp_path: Path) -> Path:
    """The checkpoint, as if several ranks had written the first file of its state: the same bytes."""
    copy = tmp_path / STEP
    shutil.copytree(written / STEP, copy)
    manifest, file = read_manifest(copy), copy / FILES[3]
    data = file.read_bytes()
    file.unlink()
    cuts = [0, len(data) // 3, len(data) // 2, len(data)]
    # Whoever comes first makes the file.
    parts = {begin: write_file(file, [data[begin:end]], begin) for begin, end in reversed([*pairwise(cuts)])}
    assert file.read_bytes() == data
    files = {**manifest.files, FILES[3]: joined([parts[begin] for begin in sorted(parts)])}
    write_manifest(copy, manifest.run, manifest.step, files, manifest.shards)
    return copy


def test_each_file_and_each_part_of_one_is_read_by_one_rank(of_parts: Path, written: Path) -> None:
    assert problem_of(of_parts, first=0) is None and [share_of(of_parts, rank) for rank in range(4)] == [None] * 4
    for name in FILES[2:]:
        data, readers = (of_parts / name).read_bytes(), set()
        for at in (8, len(data) // 3 - 1, len(data) // 3, len(data) // 2, len(data) - 1):
            (of_parts / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            wrong = f"{of_parts / name}: does not match its SHA-256 in manifest.json: the file is damaged; "
            assert (problem_of(of_parts, first=0) or "").startswith(wrong)
            said = [share_of(of_parts, rank) for rank in range(4)]
            (reader,) = (rank for rank in range(4) if said[rank] is not None)
            assert (said[reader] or "").startswith(wrong)
            readers.add(reader)
        assert readers == {FILES[2]: {1}, FILES[3]: {0, 1}, FILES[4]: {2}}[name]
        (of_parts / name).write_bytes(data)


def test_a_manifest_whose_files_have_parts_says_so_and_its_parts_add_up(of_parts: Path, written: Path) -> None:
    assert '"format": "hyena-ds checkpoint 3"' in (of_parts / "manifest.json").read_text()
    assert '"format": "hyena-ds checkpoint 2"' in (written / STEP / "manifest.json").read_text()
    manifest = read_manifest(of_parts)
    whole = manifest.files[FILES[3]]
    assert len(whole.parts) == 3
    for wrong in (
        replace(whole, parts=whole.parts[:2]),
        replace(whole, parts=whole.parts[::-1]),
        replace(whole, parts=((whole.bytes, "0" * 64),)),
        replace(whole, parts=((-1, whole.parts[0][1]), (whole.bytes + 1, whole.parts[1][1]))),
    ):
        write_manifest(of_parts, manifest.run, manifest.step, {**manifest.files, FILES[3]: wrong})
        assert "manifest.json: does not match its own checksum" in (problem_of(of_parts) or "")
