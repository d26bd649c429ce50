"""Which checkpoint is resumed: the newest whole one, by all ranks, whatever `latest` says; and what the listing shows."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.checkpoints.directory import latest_checkpoint, named_checkpoint
from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.checkpoints.manifest import read_checkpoint, read_manifest, write_file, write_manifest
from hyena_ds.checkpoints.weights import find_weights
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from tests.checkpoints import cases
from tests.checkpoints.corruption import COUNT, damage, damaged_copies
from tests.distributed.pool import Pool
from tests.paths import ROOT

ONE, TWO = "step-00000001", "step-00000002"


@pytest.fixture()
def run(written: Path, tmp_path: Path) -> Path:
    """A run directory with both checkpoints."""
    shutil.copytree(written, tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def spoil(run: Path, step: str, file: str, kind: str, written: Path) -> None:
    other = ONE if step == TWO else TWO
    damage(run / "checkpoints" / step, written / other, file, kind, random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("latest", [None, "", ONE + "\n", "step-00000007\n", "\x00rubbish"])
def test_the_pointer_may_be_missing_stale_or_rubbish(
    latest: str | None, run: Path, ranks: Callable[[int], Pool]
) -> None:
    (run / "checkpoints" / "latest").unlink()
    if latest is not None:
        (run / "checkpoints" / "latest").write_text(latest)
    assert ranks(2).run(cases.choose, directory=run / "checkpoints", resume="latest") == [(TWO, [])] * 2
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None and newest.path == run / "checkpoints" / TWO
    assert find_weights(run).parent.name == TWO


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "kind"),
    [("state-00001-of-00002.safetensors", "flip"), ("weights.safetensors", "truncate"), ("manifest.json", "delete")],
)
def test_a_damaged_one_is_named_by_every_rank_and_the_one_before_it_is_used(
    file: str, kind: str, run: Path, written: Path, ranks: Callable[[int], Pool]
) -> None:
    spoil(run, TWO, file, kind, written)
    answers = ranks(2).run(cases.choose, directory=run / "checkpoints", resume="latest", timeout=60)
    assert answers[0] == answers[1]
    name, (line,) = answers[0]
    assert name == ONE
    assert f"damaged checkpoint passed over: {run / 'checkpoints' / TWO / file}: " in line
    # The one that was named by its path is not replaced by another.
    named = ranks(2).run(cases.choose, directory=run / "checkpoints", resume=str(run / "checkpoints" / TWO), timeout=60)
    assert all(answer[0].startswith(f"refused: {run / 'checkpoints' / TWO / file}: ") for answer in named)


@pytest.mark.slow
def test_random_damage_is_named_by_every_rank_within_the_bound_and_the_one_before_is_used(
    written: Path, tmp_path: Path, ranks: Callable[[int], Pool]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(written / ONE, checkpoints / ONE)
    hit = set()
    for copy, done in damaged_copies(written / TWO, written / ONE, checkpoints, COUNT, seed=COUNT + 1):
        answers = ranks(2).run(cases.choose, directory=checkpoints, resume="latest", timeout=60)
        assert [name for name, _ in answers] == [ONE, ONE], (done, answers)
        assert all(f"passed over: {copy / done.file}: " in line for _, (line,) in answers), (done, answers)
        hit.add(done.file)
    assert hit == {path.name for path in (written / TWO).iterdir()}


def test_weights_to_start_from_are_those_that_the_manifest_names(run: Path, written: Path) -> None:
    file = run / "checkpoints" / TWO / "weights.safetensors"
    assert find_weights(file) == find_weights(file.parent) == file
    spoil(run, TWO, "weights.safetensors", "flip", written)
    for path in (run, file.parent, file):
        with pytest.raises(UserError, match=r"weights\.safetensors: does not match its SHA-256 in manifest\.json"):
            find_weights(path)
    alone = run / "weights.safetensors"  # a copy that no manifest speaks of
    shutil.copy(file, alone)
    assert find_weights(alone) == alone


def test_a_flipped_byte_in_the_run_state_shows_without_reading_the_tensors(run: Path, written: Path) -> None:
    spoil(run, TWO, "run_state.json", "flip", written)
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None and newest.path == run / "checkpoints" / ONE
    lines, whole = list_checkpoints(run, verify=False)
    assert not whole and "run_state.json: does not match its SHA-256" in lines[2]


@pytest.mark.slow
def test_where_none_is_whole_the_run_is_refused_and_not_started_afresh(
    run: Path, written: Path, ranks: Callable[[int], Pool]
) -> None:
    spoil(run, ONE, "run_state.json", "flip", written)
    spoil(run, TWO, "run_state.json", "delete", written)
    answers = ranks(2).run(cases.choose, directory=run / "checkpoints", resume="latest", timeout=60)
    assert answers[0] == answers[1]
    assert answers[0][0].startswith(f"refused: {run / 'checkpoints'}: none of the checkpoints is whole (")
    shutil.rmtree(run / "checkpoints" / ONE)
    with pytest.raises(UserError, match="none of the checkpoints is whole"):
        latest_checkpoint(run / "checkpoints")


@pytest.mark.slow
def test_without_checkpoints_a_run_is_fresh_and_a_path_that_is_none_is_refused(
    tmp_path: Path, ranks: Callable[[int], Pool]
) -> None:
    assert ranks(2).run(cases.choose, directory=tmp_path, resume="latest") == [("none", [])] * 2
    for name, _ in ranks(2).run(cases.choose, directory=tmp_path, resume="latset"):
        assert name.startswith("refused: resume: found 'latset', which is no checkpoint; wanted latest, never or a")


def test_the_listing_shows_what_each_holds_and_which_is_resumed_without_torch(run: Path, written: Path) -> None:
    lines, whole = list_checkpoints(run, verify=True)
    assert whole and len(lines) == 3
    cells = lines[2].split("  ")
    assert lines[2].split()[:3] == ["2", "0", "200"]
    assert (
        "data parallel 2 x sequence parallel 1" in lines[2] and cells[-1] == "complete; resume: latest takes this one"
    )
    assert lines[1].endswith("  complete")
    # A flipped byte shows when all bytes are read; the exit code tells.
    spoil(run, TWO, "weights.safetensors", "flip", written)
    assert list_checkpoints(run, verify=False)[1]
    (run / "checkpoints" / ".step-00000003.partial").mkdir()
    program = "import sys; sys.modules['torch'] = None; from hyena_ds.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "checkpoints", str(run), "--verify"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    shown = result.stdout.splitlines()
    assert shown[1].endswith("complete; resume: latest takes this one")
    assert f"{run / 'checkpoints' / TWO / 'weights.safetensors'}: does not match its SHA-256" in shown[2]
    assert shown[3].endswith(".step-00000003.partial: half-written; cleared at the next save")
    with pytest.raises(UserError, match="nowhere: found no directory, wanted that of a run"):
        list_checkpoints("nowhere", verify=False)


def test_a_path_that_is_no_checkpoint_is_named_with_what_it_is_and_what_to_give(run: Path, tmp_path: Path) -> None:
    checkpoints = run / "checkpoints"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    wanted = "wanted latest, never or a checkpoint's path"
    newest = f"{wanted}: give one of them, for instance {checkpoints / TWO}"
    for resume, found in {
        "/etc": f"which is no checkpoint but another directory; {wanted}",
        "/dev/..": f"which is no checkpoint but another directory; {wanted}",
        "/etc/passwd": f"which is no checkpoint but a file; {wanted}",
        "/dev/null": f"which is no checkpoint; {wanted}",
        str(tmp_path / "loop"): f"which is no checkpoint; {wanted}",
        "nowhere": f"which is no checkpoint; {wanted}",
        "no\0where": f"which is no checkpoint; {wanted}",
        "x" * 5000: f"which is no checkpoint; {wanted}",
        str(run): f"the directory of a run; {newest}",
        str(checkpoints): f"the directory of checkpoints; {newest}",
        str(
            checkpoints / TWO / "weights.safetensors"
        ): f"a file of a checkpoint; give its directory, {checkpoints / TWO}",
    }.items():
        with pytest.raises(UserError) as raised:
            named_checkpoint(resume)
        assert str(raised.value) == f"resume: found '{in_one_line(resume, MOST_QUOTED)}', {found}"
    assert named_checkpoint(str(checkpoints / TWO)) == checkpoints / TWO
    for name in (ONE, TWO):
        (checkpoints / name / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"the directory of checkpoints; .+: none of them is whole; give another one"):
        named_checkpoint(str(checkpoints))


DAMAGED_STATES: dict[str, Any] = {
    "a list": [1],
    "deep": None,
    "a step in letters": {"step": "2"},
    "a negative step": {"step": -2},
    "skipped that is a number": {"skipped": 3},
    "skipped of letters": {"skipped": ["a"]},
    "a grid that is a list": {"grid": [2, 1]},
    "stages that are none": {"stages": None},
    "a config that is text": {"config": "x"},
    "updates that are a truth": {"updates": True},
    "another column": {"more": 1},
}


@pytest.mark.parametrize("change", DAMAGED_STATES.values(), ids=DAMAGED_STATES)
def test_a_run_state_of_wrong_types_is_one_sentence(change: Any, run: Path) -> None:
    checkpoint = run / "checkpoints" / TWO
    state = json.loads((checkpoint / "run_state.json").read_text())
    text = "[" * 100_000 if change is None else json.dumps({**state, **change} if isinstance(change, dict) else change)
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, "run_state.json": write_file(checkpoint / "run_state.json", [text.encode()])}
    write_manifest(checkpoint, manifest.run, manifest.step, files)
    with pytest.raises(
        UserError, match=r"run_state\.json: not a readable run state \(.+\): the file is damaged; remove"
    ):
        read_checkpoint(checkpoint)
