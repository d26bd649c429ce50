"""Copies of checkpoints in tiers: whole or not there, whatever breaks on the way; and the newest of any tier is resumed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.checkpoints.directory import problem_of
from hyena_ds.checkpoints.tier_store import TierStore
from hyena_ds.config.checkpoint import TierConfig
from hyena_ds.errors import UserError
from tests.checkpoints import tier_cases
from tests.checkpoints.bucket import NAME, Door, bucket
from tests.distributed.pool import Pool
from tests.training.runs import tree

RUN = "distributed"


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with bucket() as found:
        yield found


def whole(store: Path) -> list[int]:
    """The steps of a tier's directory, each of which is whole."""
    found = sorted((store / RUN).glob("step-*"))
    assert [problem for path in found if (problem := problem_of(path, 0))] == []
    return [int(path.name[5:]) for path in found]


def tier(place: object, every: int = 1, **changes: Any) -> dict[str, Any]:
    return {"place": str(place), "every_steps": every, "patience": 30.0, **changes}


@pytest.mark.slow
def test_copies_of_two_nodes_reach_a_bucket_through_breaking_connections_and_come_back(
    door: Door, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    run, place = tmp_path / "run", f"s3://{NAME}/two-nodes"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 6}\n')
    tiers = [tier(tmp_path / "shared", 2, keep_last=1, keep_every=4), tier(place, 3, keep_last=1)]
    door.every, before = 2, door.broken
    try:
        said, _ = ranks(2).run(
            tier_cases.copied, run=run, tiers=tiers, steps=[1, 2, 3, 4, 5, 6, 7], environment=door.environment
        )
        assert door.broken > before
        # The run's own directory has no step 4 any more; the copy of 6 went to both; 7 is the last of the run.
        assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000006", "step-00000007"]
        assert whole(tmp_path / "shared") == [4, 7]
        assert TierStore(TierConfig(place), RUN).steps() == {7: True}
        assert [line for line in said if "given up" in line] == []
        assert sum("is complete" in line for line in said) == 4 + 3
        assert not list((run / "checkpoints").glob(".upload-*"))
        saved = tree(run)
        shutil.rmtree(run)
        answers = ranks(2).run(tier_cases.chosen, run=run, tiers=tiers[1:], environment=door.environment)
    finally:
        door.every = 0
    assert answers[0] == answers[1]
    name, news, newest = answers[0]
    assert (name, newest) == ("step-00000007", (7,))
    assert news == [f"brought step 7 from {place}/{RUN}", f"brought metrics.jsonl from {place}/{RUN}"]
    brought = tree(run)
    assert brought == {file: saved[file] for file in brought}
    assert len(brought) == 6 + 2  # with metrics.jsonl and `latest`


@pytest.mark.slow
def test_what_did_not_arrive_whole_is_no_checkpoint_and_the_run_goes_on_or_ends_as_the_tier_says(
    door: Door, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    place = f"s3://{NAME}/shut"
    door.shut = True
    try:
        tiers = [tier(place, patience=5.0)]
        said, _ = ranks(2).run(
            tier_cases.copied, run=tmp_path / "run", tiers=tiers, steps=[1], environment=door.environment, nodes=1
        )
        assert [line.partition(" (")[0] for line in said[:1]] == [
            f"{place}/{RUN}: the copy of step 1: broke and is tried again"
        ]
        assert f"{place}/{RUN}: the copy of step 1: given up after" in said[1]
        door.shut = False
        store = TierStore(TierConfig(place), RUN)
        assert store.steps() == {}
        said, _ = ranks(2).run(
            tier_cases.copied, run=tmp_path / "run", tiers=tiers, steps=[2], environment=door.environment, nodes=1
        )
        assert store.steps() == {2: True}, said
        # A node that brings nothing: its files are not there, so there is no manifest.
        (tmp_path / "file").write_text("in the way")
        tiers = [tier(tmp_path / "file", required=True, patience=0.5)]
        ends, _ = ranks(2).run(
            tier_cases.copied, run=tmp_path / "run", tiers=tiers, steps=[3], environment=door.environment, nodes=1
        )
        assert ends.startswith(f"checkpoint.tiers: {tmp_path / 'file'}/{RUN}: the copy of step 3: given up after")
        assert "which the run requires; the run's own checkpoints are whole: see to the place, or set required" in ends
    finally:
        door.shut = False


@pytest.mark.slow
def test_training_does_not_wait_for_a_store_that_does_not_answer(
    door: Door, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    door.shut = True
    try:
        answers = ranks(2).run(
            tier_cases.steps_while_the_store_hangs,
            run=tmp_path / "run",
            place=f"s3://{NAME}/hangs",
            environment=door.environment,
            train=5,
        )
    finally:
        door.shut = False
    assert answers == [([1, 2, 3, 4, 5], True)] * 2
    # The copy under way keeps the files of a checkpoint that the directory has no room for.
    assert not (tmp_path / "run" / "checkpoints" / "step-00000001").exists()
    links = (tmp_path / "run" / "checkpoints").glob(".upload-0-00000001-*/*")
    assert len({path.name for path in links}) == 6


@pytest.fixture()
def two_places(ranks: Callable[[int], Pool], tmp_path: Path) -> list[dict[str, Any]]:
    """Copies of steps 1 and 2 in the first, of 1 and 2 in the second, and no directory any more."""
    tiers = [tier(tmp_path / "near"), tier(tmp_path / "far")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    ranks(2).run(tier_cases.copied, run=tmp_path / "run", tiers=tiers, steps=[1, 2], environment={}, nodes=1)
    assert whole(tmp_path / "near") == whole(tmp_path / "far") == [1, 2]
    shutil.rmtree(tmp_path / "run")
    return tiers


@pytest.mark.slow
def test_a_damaged_copy_is_passed_over_for_the_next_of_any_tier(
    two_places: list[dict[str, Any]], ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    run, near, far = tmp_path / "run", tmp_path / "near" / RUN, tmp_path / "far" / RUN

    def chosen(**changes: Any) -> tuple[str, list[str]]:
        answers = ranks(2).run(tier_cases.chosen, run=run, tiers=two_places, environment={}, **changes)
        assert answers[0] == answers[1]
        return answers[0][:2]

    flipped = near / "step-00000002" / "weights.safetensors"
    data = bytearray(flipped.read_bytes())
    data[7] ^= 1
    flipped.write_bytes(data)
    name, news = chosen()
    assert (name, news[1]) == ("step-00000002", f"brought step 2 from {far}")
    assert "damaged copy passed over" in news[0] and "weights.safetensors: does not match its SHA-256" in news[0]
    # Bytes of the directory's own newest are wrong: its copy takes its place.
    own = run / "checkpoints" / "step-00000002" / "state-0.safetensors"
    own.write_bytes(bytes(tier_cases.BYTES))
    name, news = chosen()
    assert name == "step-00000002" and f"brought step 2 from {far}" in news
    # A missing file, a manifest that is cut short, and one that never came.
    shutil.rmtree(run)
    (far / "step-00000002" / "state-1.safetensors").unlink()
    manifest = near / "step-00000001" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    name, news = chosen()
    assert (name, news[-2]) == ("step-00000001", f"brought step 1 from {far}")
    assert f"{far}/step-00000002/state-1.safetensors: missing" in news[1]
    assert "manifest.json: does not match its own checksum" in news[2]
    shutil.rmtree(run)
    (far / "step-00000001" / "manifest.json").unlink()
    refused, _ = chosen()
    assert refused.startswith(
        "checkpoint.tiers: none of the copies of this run could be brought (damaged copy passed over"
    )
    assert refused.endswith("; see to the places, or remove the run there to start afresh")
    assert not list((run / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_checkpoint_of_the_runs_weights_is_copied_kept_and_brought(
    ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    run, tiers = tmp_path / "run", [tier(tmp_path / "far", 100, keep_last=1)]
    arguments = {"run": run, "tiers": tiers, "environment": {}}
    ranks(2).run(tier_cases.copied, steps=[1, 2, 3], selected=2, **arguments)
    assert whole(tmp_path / "far") == [2, 3]  # neither is due by its step
    shutil.rmtree(run)
    name, news, _ = ranks(2).run(tier_cases.chosen, **arguments)[0]
    assert name == "step-00000003"
    assert f"brought step 2, whose weights are the run's, from {tmp_path / 'far' / RUN}" in news
    pointers = [(run / "checkpoints" / pointer).read_text() for pointer in ("latest", "selected")]
    assert pointers == ["step-00000003\n", "step-00000002\n"]


@pytest.mark.slow
def test_a_tier_out_of_reach_another_run_and_resume_never_are_refused_in_one_sentence(
    two_places: list[dict[str, Any]], ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    run, near = tmp_path / "run", tmp_path / "near" / RUN

    def chosen(tiers: list[dict[str, Any]], **changes: Any) -> tuple[str, list[str], tuple[int, ...]]:
        return ranks(2).run(tier_cases.chosen, run=run, tiers=tiers, environment={}, **changes)[0]

    lost = tier(f"s3://{NAME}/x", patience=0.1)
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    answer = ranks(2).run(tier_cases.chosen, run=run, tiers=[lost], environment=nowhere)[0][0]
    assert answer.startswith(f"checkpoint.tiers: s3://{NAME}/x/{RUN}: its checkpoints cannot be listed: given up after")
    assert answer.endswith("; see to the place, or take it out of checkpoint.tiers to do without its checkpoints")
    assert chosen(two_places, resume="never")[0] == (
        f"{near}: holds checkpoints of a run of this name and resume is 'never'; choose another name or resume: latest, or "
        "remove them"
    )
    tier_cases.made(run / "checkpoints", 1, run="another")
    assert chosen(two_places)[0].startswith(
        f"{near}: found checkpoints of another run than those of {run / 'checkpoints'}; choose another name or place"
    )
    # With a checkpoint of its own, a run goes on without the tier.
    name, news, newest = ranks(2).run(tier_cases.chosen, run=run, tiers=[lost], environment=nowhere)[0]
    assert (name, newest) == ("step-00000001", (0,))
    assert news[0].endswith("; going on without its checkpoints")


def test_a_missing_library_is_found_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place, package in ((str(tmp_path), "obstore"), (f"s3://{NAME}/x", "boto3")):
        with monkeypatch.context() as lacking:
            lacking.setitem(sys.modules, package, None)
            with pytest.raises(UserError) as caught:
                TierStore(TierConfig(place), RUN).check_packages()
        said = f"{package} is not installed; pip install 'hyena-ds[tiers]', or take {place} out of checkpoint.tiers"
        assert str(caught.value) == f"checkpoint.tiers: {said}"
        TierStore(TierConfig(place), RUN).check_packages()
