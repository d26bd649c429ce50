"""Writing while training goes on: complete or not there, the same files as without, and what is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyena_ds.checkpoints.directory import (
    begin,
    checkpoints_in,
    clear,
    complete,
    hide,
    named_checkpoint,
    newest_whole,
    problem_of,
    set_aside_after,
    surplus,
)
from hyena_ds.checkpoints.manifest import RUN_STATE, WEIGHTS, Record, RunState, write_file, write_manifest
from tests.checkpoints import cases
from tests.distributed.pool import Pool
from tests.training.runs import tree


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_background_writes_the_files_of_a_save_that_waits(
    zero_stage: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    for background in (True, False):
        ranks(2).run(
            cases.save,
            directory=tmp_path / str(background),
            zero_stage=zero_stage,
            steps=[1, 2, 3],
            background=background,
            keep_last=3,
        )
    files = tree(tmp_path / "True")
    assert len(files) == 3 * 5 + 1
    waited = tree(tmp_path / "False")
    # The config, and with it run_state.json and the manifest, say which of the two it was.
    own = [name for name in files if not name.endswith((RUN_STATE, "manifest.json"))]
    assert files.keys() == waited.keys()
    assert all(files[name] == waited[name] for name in own)


@pytest.mark.slow
def test_a_checkpoint_is_completed_at_the_end_of_a_later_step_by_all_ranks_at_once(
    ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    steps = ranks(2).run(cases.steps_until_complete, directory=tmp_path)
    assert steps[0] == steps[1] < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


@pytest.mark.slow
def test_a_checkpoint_appears_whole_at_the_next_save_or_the_end(ranks: Callable[[int], Pool], tmp_path: Path) -> None:
    there = ranks(2).run(cases.save, directory=tmp_path, zero_stage=1, steps=[1, 2, 6])[0]
    assert there[1] == [".step-00000001.partial"]
    assert "step-00000001" in there[2], "the next save waits for the one under way"
    assert "latest" in there[2]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000001", "step-00000002", "step-00000006"]
    assert (tmp_path / "latest").read_text() == "step-00000006\n"


@pytest.mark.slow
@pytest.mark.parametrize(("background", "full", "limit"), [(True, 1, 5000), (False, 0, 5000), (True, 0, 600)])
def test_a_rank_that_cannot_write_ends_all_with_one_sentence_and_leaves_what_was_there(
    background: bool, full: int, limit: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    answers = ranks(2).run(
        cases.save_until_full, directory=tmp_path, background=background, full=full, limit=limit, timeout=120
    )
    assert answers[0] == answers[1]
    (sentence,) = answers[0]
    file = f"state-{full:05d}-of-00002.safetensors"
    assert sentence.startswith(
        f"{tmp_path / '.step-00000002.partial' / file}: the checkpoint of step 2 could not be written"
    )
    assert "(File too large); earlier checkpoints are whole: make room" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert problem_of(tmp_path / "step-00000001", first=0) is None
    assert (tmp_path / "latest").read_text() == "step-00000001\n"


@pytest.fixture()
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB with room for one checkpoint more, but not two."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True, timeout=30
    )
    if mounted.returncode:
        reason = f"a small file system cannot be mounted here: {mounted.stderr.strip()}"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_all_ranks_with_one_sentence(ranks: Callable[[int], Pool], full_disk: Path) -> None:
    checkpoints = full_disk / "checkpoints"
    ranks(2).run(cases.save, directory=checkpoints, zero_stage=1, steps=[1])
    size = sum(path.stat().st_size for path in (checkpoints / "step-00000001").iterdir())
    free = shutil.disk_usage(full_disk).free
    (full_disk / "other").write_bytes(bytes(free - size // 2))
    answers = ranks(2).run(
        cases.save_until_full, directory=checkpoints, background=True, full=-1, limit=0, timeout=120, first=False
    )
    assert answers[0] == answers[1]
    (sentence,) = answers[0]
    assert sentence.startswith(f"{checkpoints / '.step-00000002.partial'}/"), sentence
    assert "the checkpoint of step 2 could not be written (No space left on device)" in sentence
    assert [path.name for path in sorted(checkpoints.glob("step-*"))] == ["step-00000001"]
    assert problem_of(checkpoints / "step-00000001", first=0) is None


def small(directory: Path, step: int, keep_last: int = 2, keep_every: int | None = None) -> list[str]:
    """A checkpoint with all but tensors; what is said of it."""
    partial = begin(directory, step)
    record = Record("run", RunState(step, 0, 0), step, 1, {}, 0, [], {})
    texts = {RUN_STATE: record.text(), WEIGHTS: f"weights of {step}"}
    files = {name: write_file(partial / name, [text.encode()]) for name, text in texts.items()}
    write_manifest(partial, "run", step, files)
    news = complete(partial, step)
    there = checkpoints_in(directory)
    going = surplus(there, step, keep_last, keep_every, None, lambda path: problem_of(path) is None)
    said, hidden = hide(going)
    return news + said + clear(hidden.values())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "latest")


def test_the_newest_are_kept_and_multiples_for_ever(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        small(tmp_path, step, keep_last=2, keep_every=30)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (30, 60, 80, 90)]


def test_damaged_ones_neither_count_nor_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        small(tmp_path, step, keep_last=3)
    (tmp_path / "step-00000003" / WEIGHTS).unlink()
    small(tmp_path, 4, keep_last=2)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 3, 4)]


def test_what_a_killed_run_left_half_written_goes_at_the_next_save(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    (tmp_path / ".step-00000001.partial" / WEIGHTS).write_text("half")
    (tmp_path / ".step-00000000.old.partial").mkdir()
    small(tmp_path, 2)
    assert names(tmp_path) == ["step-00000002"]


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(tmp_path: Path) -> None:
    small(tmp_path, 1)
    (tmp_path / "step-00000001" / WEIGHTS).write_text("damaged")
    small(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001"] and problem_of(tmp_path / "step-00000001", first=0) is None


def test_later_checkpoints_are_set_aside_when_an_earlier_one_is_resumed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        small(tmp_path, step, keep_last=3)
    assert [path.name for path in set_aside_after(tmp_path, 1)] == [
        "abandoned-step-00000003",
        "abandoned-step-00000002",
    ]
    small(tmp_path, 2, keep_last=1)
    assert names(tmp_path) == ["abandoned-step-00000002", "abandoned-step-00000003", "step-00000002"]


OUTSIDE = {"mine": "not to be touched"}


def stranger(path: Path, kind: str) -> Path:
    """A file, link or directory at `path`; the directory outside that the link names."""
    outside = path.parent.parent / "outside"
    outside.mkdir(exist_ok=True)
    for name, text in OUTSIDE.items():
        (outside / name).write_text(text)
    if kind == "file":
        path.write_text("a stranger's")
    elif kind == "directory":
        path.mkdir()
        (path / "mine").write_text("a stranger's")
    else:
        path.symlink_to(outside if kind == "link" else outside / "gone")
    return outside


KINDS = ("file", "directory", "link", "dangling link")
PLACES = (
    ".step-00000003.partial",
    ".step-00000001.partial",
    ".step-00000001.old.partial",
    "step-00000003",
    "latest",
    ".latest.partial",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_stands_in_the_way_of_a_checkpoint_blocks_no_save_and_no_link_is_followed(
    kind: str, place: str, tmp_path: Path
) -> None:
    run = tmp_path / "checkpoints"
    for step in (1, 2):
        small(run, step)
    (run / "latest").unlink()
    outside = stranger(run / place, kind)
    said = small(run, 3)
    assert [path.name for path in sorted(run.glob("step-*"))] == ["step-00000002", "step-00000003"]
    assert problem_of(run / "step-00000003", first=0) is None and (run / "latest").read_text() == "step-00000003\n"
    assert tree(outside) == {name: text.encode() for name, text in OUTSIDE.items()}
    if place == "step-00000003" or (place == "latest" and kind == "directory"):
        (sentence,) = said
        assert f"{run / place}: found a" in sentence and sentence.endswith(f"it is now {run / f'abandoned-{place}'}")
        assert os.path.lexists(run / f"abandoned-{place}"), "a stranger's is moved, not removed"
    else:
        assert said == []


@pytest.mark.parametrize("kind", ("file", "link", "dangling link"))
def test_what_stands_where_checkpoints_are_set_aside_is_passed(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "checkpoints"
    small(run, 1)
    outside = stranger(run / "abandoned-step-00000001", kind)
    assert [path.name for path in set_aside_after(run, 0)] == ["abandoned-step-00000001-1"]
    assert tree(outside) == {name: text.encode() for name, text in OUTSIDE.items()}


def test_a_checkpoint_that_was_moved_away_and_linked_is_read_and_retention_leaves_it_and_says_so(
    tmp_path: Path,
) -> None:
    run, archive = tmp_path / "checkpoints", tmp_path / "archive"
    archive.mkdir()
    small(run, 1)
    (run / "step-00000001").rename(archive / "step-00000001")
    (run / "step-00000001").symlink_to(archive / "step-00000001")
    before = tree(archive)
    newest = newest_whole(run)
    assert newest is not None and newest.path == run / "step-00000001" == named_checkpoint(str(run / "step-00000001"))
    assert small(run, 2) == []
    for step in (3, 4):
        assert small(run, step) == [
            f"{run / 'step-00000001'}: a link, left where it is; remove it, and what it names, when you no longer want it"
        ]
    assert names(run) == ["step-00000001", "step-00000003", "step-00000004"] and tree(archive) == before
    small(run, 1)
    assert not (run / "step-00000001").is_symlink() and tree(archive) == before


def test_checkpoints_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "big")
    for step in (1, 2, 3):
        assert small(tmp_path / "checkpoints", step) == []
    assert names(tmp_path / "big") == ["step-00000002", "step-00000003"]


def test_what_retention_cannot_remove_is_said_and_tried_again_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        small(tmp_path, step)
    remove, rename = shutil.rmtree, Path.rename

    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr("shutil.rmtree", refused)
    hidden = tmp_path / ".step-00000001.old.partial"
    assert small(tmp_path, 3) == [
        f"{hidden}: cannot be removed (Operation not permitted); tried again at the next save"
    ]
    monkeypatch.setattr("shutil.rmtree", remove)
    monkeypatch.setattr(Path, "rename", lambda path, to: refused(path) if "00000002" in path.name else rename(path, to))
    (sentence,) = small(tmp_path, 4)
    assert sentence.startswith(f"{tmp_path / 'step-00000002'}: cannot be removed (Operation not permitted)")
    monkeypatch.setattr(Path, "rename", rename)
    assert small(tmp_path, 5) == [] and names(tmp_path) == ["step-00000004", "step-00000005"]


@pytest.mark.slow
def test_ranks_write_on_beside_a_partial_directory_that_cannot_be_cleared(
    ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    """A mount point cannot be removed, by root neither."""
    there = tmp_path / ".step-00000001.partial"
    there.mkdir()
    if subprocess.run(["mount", "--bind", str(there), str(there)], capture_output=True, timeout=30).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        ranks(2).run(cases.save, directory=tmp_path, zero_stage=1, steps=[1])
    finally:
        subprocess.run(["umount", str(there)], check=True, timeout=30)
    assert problem_of(tmp_path / "step-00000001", first=0) is None
