"""Parts of checkpoints on disks of the hosts' own: whole only together, whatever has become of one of them."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.checkpoints.directory import problem_of, read_note
from hyena_ds.checkpoints.listing import list_checkpoints
from tests.checkpoints import local_cases
from tests.distributed.pool import Pool

RUN = "distributed"
HOST = socket.gethostname()
FIRST, SECOND = (f"state-0000{number}-of-00002.safetensors" for number in range(2))

Ask = Callable[..., Any]


@pytest.fixture()
def ask(ranks: Callable[[int], Pool], tmp_path: Path) -> Ask:
    """A case of `local_cases` on two hosts; rank 0's answer, which is that of both."""

    def asked(case: Callable[..., Any], both: bool = True, **arguments: Any) -> Any:
        answers = ranks(2).run(case, run=tmp_path / "run", disk=tmp_path / "disk", **arguments)
        first, second = (repr(answer).replace("disk-1", "disk-0") for answer in answers)
        assert not both or first == second
        return answers[0]

    return asked


def disk(directory: Path, rank: int, step: int | None = None) -> Path:
    own = directory / f"disk-{rank}" / RUN
    return own if step is None else own / f"step-{step:08d}"


def parts(directory: Path) -> list[list[str]]:
    """The steps on each disk."""
    return [sorted(path.name for path in disk(directory, rank).glob("step-*")) for rank in range(2)]


@pytest.mark.slow
def test_parts_are_kept_by_each_host_and_found_wherever_the_hosts_stand(ask: Ask, tmp_path: Path) -> None:
    assert ask(local_cases.saved, steps=[1, 2, 3]) == []
    assert parts(tmp_path) == [["step-00000002", "step-00000003"]] * 2
    assert {path.name for path in disk(tmp_path, 1, 3).iterdir()} == {SECOND, "manifest.json"}
    manifests = {(disk(tmp_path, rank, 3) / "manifest.json").read_bytes() for rank in range(2)}
    assert len(manifests) == 1
    held = {"run_state.json": 0, "weights.safetensors": 0, FIRST: 0, SECOND: 1}
    assert ask(local_cases.chosen) == ("3 on the disks", held, [])
    assert ask(local_cases.chosen, swapped=True) == (
        "3 on the disks",
        {name: 1 - node for name, node in held.items()},
        [],
    )
    assert read_note(tmp_path / "run" / "checkpoints") == ("one", 3)
    lines, whole = list_checkpoints(tmp_path / "run", verify=False)
    assert whole and lines[0].endswith("no checkpoints")
    assert (
        lines[1] == "parts of step 3 were saved on the hosts' own disks; resume: latest takes them where all are whole"
    )
    assert not [path for rank in range(2) for path in disk(tmp_path, rank).glob(".*")]
    said = ask(local_cases.removed_after, step=2)
    assert said == [f"{disk(tmp_path, 0)}: parts of later steps were removed (3)"]
    assert parts(tmp_path) == [["step-00000002"]] * 2


@pytest.mark.slow
def test_what_is_lost_damaged_or_of_another_save_is_passed_over_with_the_host_that_wrote_it(
    ask: Ask, tmp_path: Path
) -> None:
    ask(local_cases.saved, steps=[1, 2, 3], keep_last=3)
    flipped = disk(tmp_path, 1, 3) / SECOND
    data = bytearray(flipped.read_bytes())
    data[7] ^= 1
    flipped.write_bytes(data)
    shorter = disk(tmp_path, 0, 2) / FIRST
    shorter.write_bytes(shorter.read_bytes()[:-1])
    name, _, news = ask(local_cases.chosen)
    assert name == "1 on the disks"
    assert f"{HOST}: {shorter}: found 999 bytes, wanted 1000: the part is damaged" in news
    damaged, short = (next(line for line in news if f"step {step} of" in line) for step in (3, 2))
    assert f"is passed over: {HOST}: {flipped}: does not match its SHA-256" in damaged
    assert short.endswith(f"is passed over: no host of this run has {FIRST}, written on {HOST}")
    # A host comes back with what another save of step 3 left there: the manifests differ.
    shutil.copytree(disk(tmp_path, 1, 3), tmp_path / "before")
    ask(local_cases.saved, steps=[3], keep_last=3)
    shutil.rmtree(disk(tmp_path, 1, 3))
    shutil.move(tmp_path / "before", disk(tmp_path, 1, 3))
    name, _, news = ask(local_cases.chosen)
    assert name == "1 on the disks" and sum("step 3 of" in line for line in news) == 2
    assert any("no host of this run has run_state.json and 2 other files" in line for line in news)
    # Under the name of another step.
    disk(tmp_path, 1, 1).rename(disk(tmp_path, 1, 9))
    name, _, news = ask(local_cases.chosen)
    assert name == "none"
    assert any("found the manifest of step 1, wanted that of step-00000009" in line for line in news)
    # A run of the same name that began anew: nothing of the old one counts, and it is left to the user.
    ask(local_cases.saved, steps=[7], name="two", keep_last=1)
    name, _, news = ask(local_cases.chosen)
    assert name == "7 on the disks"
    assert any("parts of another run are passed over (steps 1, 2, 3); remove them when" in line for line in news)
    assert "step-00000002" in parts(tmp_path)[0]
    # The disk is lost with its host.
    shutil.rmtree(tmp_path / "disk-1")
    name, _, news = ask(local_cases.chosen)
    assert name == "none" and news[-1].endswith(f"no host of this run has {SECOND}, written on {HOST}")


@pytest.mark.slow
def test_every_host_sends_its_part_to_the_next_tier_which_is_taken_where_a_disk_is_lost(
    ask: Ask, tmp_path: Path
) -> None:
    tiers = [{"place": str(tmp_path / "shared"), "every_steps": 2, "patience": 30.0}]
    said = ask(local_cases.saved, both=False, steps=[1, 2, 3], tiers=tiers)
    assert sum("the copy of step 2 is complete" in line for line in said) == 1
    copies = sorted((tmp_path / "shared" / RUN).glob("step-*"))
    assert [(path.name, problem_of(path, 0)) for path in copies] == [("step-00000002", None), ("step-00000003", None)]
    shutil.rmtree(copies[1])
    assert ask(local_cases.chosen, tiers=tiers)[0] == "3 on the disks"
    assert not (tmp_path / "run" / "checkpoints" / "step-00000002").exists(), "nothing is brought that is not needed"
    shutil.rmtree(tmp_path / "disk-1")
    name, _, news = ask(local_cases.chosen, tiers=tiers)
    assert name == "2 in the directory"
    lost = next(line for line in news if "step 3 of" in line)
    assert lost.endswith(f"no host of this run has {SECOND}, written on {HOST}")
    assert f"brought step 2 from {tmp_path / 'shared' / RUN}" in news
    # The copy in the directory is damaged, and parts are older, but whole.
    ask(local_cases.saved, steps=[1])
    for rotten in (copies[0], tmp_path / "run" / "checkpoints" / "step-00000002"):
        (rotten / SECOND).write_bytes(bytes(1000))
    name, _, news = ask(local_cases.chosen, tiers=tiers)
    assert name == "1 on the disks"
    assert any("passed over: " in line and "none of the checkpoints is whole" in line for line in news)


@pytest.mark.slow
def test_a_disk_that_takes_nothing_or_is_seen_by_two_is_refused_or_done_without(ask: Ask, tmp_path: Path) -> None:
    same = ask(local_cases.opened, same=True)
    assert same == (
        f"checkpoint.tiers: the nodes of ranks 0 and 1 see the same directory {disk(tmp_path, 0)}, wanted a directory on a disk "
        "of each host's own; name another place, take local away, or let the launcher say how many ranks a host has "
        "(LOCAL_WORLD_SIZE)"
    )
    assert not list(disk(tmp_path, 0).iterdir())
    (tmp_path / "disk-1").write_text("in the way")
    assert ask(local_cases.opened).startswith(f"checkpoint.tiers: {HOST}: {disk(tmp_path, 1)}: Not a directory, wanted")
    said = ask(local_cases.not_begun, both=False, required=False)
    assert said.startswith(f"{HOST}: {disk(tmp_path, 1)}") and "the checkpoint of step 1 could not begin" in said
    assert said.endswith("; training goes on without it")
    assert not list(disk(tmp_path, 0).iterdir()), "nothing half-begun is left on the other host"
    said = ask(local_cases.not_begun, required=True)
    assert said.startswith(f"error: checkpoint.tiers: {HOST}: {disk(tmp_path, 1)}")
    assert said.endswith(
        "which the run requires; earlier checkpoints are whole: see to that disk, or set required: false, and start the run again"
    )


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_that_step_on_all_hosts_and_the_next_comes_back_exactly(
    ask: Ask, tmp_path: Path
) -> None:
    said, there, equal = ask(local_cases.full_then_whole, both=False, full=1, limit=1024)
    assert said == [
        f"{HOST}: {disk(tmp_path, 1)}/.step-00000001.partial/{SECOND}: the checkpoint of step 1 could not be written (File too "
        "large); training goes on without it"
    ]
    assert there == ["latest", "step-00000002"] and equal
    assert [path.name for path in disk(tmp_path, 1).glob("step-*/*.safetensors")] == [SECOND]
