"""An interrupted prep: nothing published, nothing done twice, and the same bytes in the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import data_prep.build
import data_prep.writer
from tests.data_prep.workshop import Workshop, files_of, gzipped, random_bases


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def finished(workshop: Workshop) -> dict[str, tuple[int, int]]:
    """Inode and time of every tar that has its record."""
    states = {}
    for record in (workshop.partial / "shards").glob("*.json"):
        if (tar := record.with_suffix(".tar")).exists():
            state = tar.stat()
            states[record.name] = (state.st_ino, state.st_mtime_ns)
    return states


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.fixture(scope="module")
def sequence() -> str:
    return random_bases(400_000, letters="ACGTacgtN")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_resumes_to_the_same_bytes_without_redoing_finished_shards(workshop, sequence, workers):
    small = {"chunk_length": 500, "chunks_per_shard": 2, "workers": workers}
    workshop.fasta({"a": sequence})
    reference = workshop.directory / "uninterrupted"
    workshop.build(output=str(reference), **small | {"workers": 1})

    process = workshop.process("build", workshop.config(**small))
    wait_for(lambda: len(finished(workshop)) >= 20 or process.poll() is not None)
    workers_of_it = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not workshop.output.exists()
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers_of_it))
    done = finished(workshop)
    assert 20 <= len(done) < 400, "the kill came too early or too late to say anything"

    workshop.build(**small)
    assert files_of(workshop.output) == files_of(reference)
    assert not workshop.partial.exists()
    states = {(p.stat().st_ino, p.stat().st_mtime_ns) for p in workshop.output.glob("*.tar")}
    assert set(done.values()) <= states


@pytest.mark.parametrize("moment", ["write_whole", "_publish", "_write"])
def test_a_build_that_ends_at_any_later_moment_resumes_too(workshop, sequence, monkeypatch, moment):
    workshop.write("genome.fa.gz", gzipped(f">a\n{sequence[:2000]}\n".encode()))
    source = {"fasta": str(workshop.directory / "genome.fa.gz")}
    reference = workshop.directory / "uninterrupted"
    workshop.build(output=str(reference), **source)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_prep.build, moment, power_cut)
    assert workshop.run("build", workshop.config(**source)).code == 130
    assert not workshop.output.exists() and workshop.partial.exists()
    monkeypatch.undo()
    workshop.build(**source)
    assert files_of(workshop.output) == files_of(reference) and not workshop.partial.exists()


def test_a_shard_of_the_unfinished_work_that_was_damaged_is_made_again(workshop, sequence, monkeypatch):
    workshop.fasta({"a": sequence[:2000]})
    reference = workshop.directory / "uninterrupted"
    workshop.build(output=str(reference))

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_prep.build, "_finish", power_cut)
    assert workshop.run("build", workshop.config()).code == 130
    monkeypatch.undo()
    tars = sorted((workshop.partial / "shards").glob("*.tar"))
    os.truncate(tars[0], 100)
    data = bytearray(tars[1].read_bytes())
    data[700] ^= 1
    tars[1].write_bytes(data)
    workshop.build()
    assert files_of(workshop.output) == files_of(reference)


@pytest.mark.parametrize("change", ["config", "input"])
def test_unfinished_work_of_another_config_or_input_is_not_used(workshop, sequence, monkeypatch, change):
    workshop.fasta({"a": sequence[:2000]})

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_prep.build, "_finish", power_cut)
    assert workshop.run("build", workshop.config()).code == 130
    monkeypatch.undo()
    changed = {}
    if change == "config":
        changed = {"chunk_length": 90}
    else:
        workshop.fasta({"a": sequence[2000:4000]})
    said = workshop.build(**changed).err
    why = "'chunk_length' was 100 and is 90" if change == "config" else "the FASTA has other bytes"
    assert f"discarding the unfinished work of another config or input ({why})" in said
    fresh = workshop.directory / "fresh"
    workshop.build(output=str(fresh), **changed)
    assert files_of(workshop.output) == files_of(fresh)


def test_a_worker_that_is_killed_is_named_and_the_finished_shards_stay(workshop, sequence):
    small = {"chunk_length": 200, "chunks_per_shard": 1, "workers": 2}
    workshop.fasta({"a": sequence})
    process = workshop.process("build", workshop.config(**small))

    def workers() -> list[int]:
        cmdlines = {pid: Path(f"/proc/{pid}/cmdline") for pid in children(process.pid)}
        return [pid for pid, line in cmdlines.items() if b"spawn_main" in line.read_bytes()]

    wait_for(lambda: len(finished(workshop)) >= 5)
    os.kill(workers()[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "a worker process ended before its time" in err.splitlines()[-1] and "Traceback" not in err
    assert not workshop.output.exists() and finished(workshop)


def test_a_second_build_of_the_same_thing_says_so_and_touches_nothing(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.build()
    before = {p: p.stat().st_mtime_ns for p in workshop.output.iterdir()}
    outcome = workshop.build(workers=2)
    assert "is complete" in outcome.out
    assert {p: p.stat().st_mtime_ns for p in workshop.output.iterdir()} == before


def test_an_output_of_another_config_is_refused_and_the_difference_named(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.build()
    before = workshop.listing()
    outcome = workshop.run("build", str(workshop.directory / "prep.yaml"), "chunk_length=50")
    assert outcome.code == 2 and "'chunk_length' was 100 and is 50" in outcome.sentence
    assert str(workshop.output) in outcome.sentence and workshop.listing() == before


def test_an_output_that_lost_a_shard_is_not_called_complete(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.build()
    (workshop.output / "train-000001.tar").unlink()
    outcome = workshop.run("build", workshop.config())
    assert outcome.code == 2 and "train-000001.tar" in outcome.sentence


@pytest.mark.parametrize("place", ["output", "partial", "file"])
def test_a_directory_that_is_not_ours_is_left_alone(workshop, sequence, place):
    workshop.fasta({"a": sequence[:2000]})
    if place == "file":
        workshop.output.write_text("mine")
    else:
        directory = getattr(workshop, place)
        directory.mkdir()
        (directory / "thesis.txt").write_text("mine")
    config = workshop.config()
    before = workshop.listing()
    outcome = workshop.run("build", config)
    assert outcome.code == 2 and "move it away" in outcome.sentence and workshop.listing() == before


def test_an_empty_directory_is_as_good_as_none(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.output.mkdir()
    workshop.build()
    assert (workshop.output / "index.json").is_file()


def test_two_builds_at_once_do_not_write_into_each_other(workshop, sequence, monkeypatch):
    workshop.fasta({"a": sequence[:2000]})
    config = workshop.config()
    seen = []

    def meanwhile(*arguments: object) -> object:
        monkeypatch.undo()
        seen.append(workshop.process("build", config).communicate()[1].splitlines()[-1])
        return data_prep.build._write(*arguments)

    monkeypatch.setattr(data_prep.build, "_write", meanwhile)
    assert workshop.run("build", config).code == 0
    assert "another prep is writing it" in seen[0]


def test_work_left_by_an_interrupted_clean_up_is_removed(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.build()
    workshop.partial.mkdir()
    shutil.copy(workshop.output / "prep.json", workshop.partial)
    workshop.build()
    assert not workshop.partial.exists()


def test_no_time_machine_path_or_worker_count_is_in_the_output(workshop, sequence):
    workshop.fasta({"a": sequence[:2000]})
    workshop.build()
    text = "".join(p.read_text() for p in workshop.output.iterdir() if p.suffix != ".tar")
    assert str(workshop.directory) not in text and "workers" not in text
    assert json.loads((workshop.output / "prep.json").read_text())["fasta"]["bytes"]


def test_a_full_disk_is_one_sentence_and_keeps_the_work(workshop, sequence, monkeypatch):
    workshop.fasta({"a": sequence[:2000]})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_prep.writer, "write_shard", full)
    outcome = workshop.run("build", workshop.config())
    assert outcome.code == 2 and "the disk is full" in outcome.sentence and workshop.partial.exists()


@pytest.mark.filterwarnings("ignore:Index file")
def test_input_that_changes_while_it_is_read_is_noticed(workshop, sequence, monkeypatch):
    workshop.fasta({"a": sequence[:2000]})
    write = data_prep.build._write

    def edit_then_write(*arguments: object) -> object:
        workshop.fasta({"a": sequence[2000:4000]})
        return write(*arguments)

    monkeypatch.setattr(data_prep.build, "_write", edit_then_write)
    outcome = workshop.run("build", workshop.config())
    assert outcome.code == 2 and "changed while it was read" in outcome.sentence
    assert not workshop.output.exists() and not workshop.partial.exists()
