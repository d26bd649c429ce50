"""A run goes on with the bytes that it was trained on, wherever they are now, and with no others."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.checkpoints.manifest import Manifest, read_manifest, write_manifest
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.remote.places import read_indices
from hyena_ds.data.shards import parse_index
from hyena_ds.errors import UserError
from hyena_ds.runs.directory import RunDirectory
from tests.data.remote.afar_server import serving
from tests.paths import ROOT
from tests.training.runs import make_shards, train, tree, write_config

MORE = (
    "stages=[{context_length: 32, steps: 2, global_batch: 2, micro_batch_size: 1}, "
    "{context_length: 64, steps: 1, global_batch: 2, micro_batch_size: 1}]"
)
"""A step more than STAGE."""
STAGE = {"context_length": 32, "steps": 2, "global_batch": 2, "micro_batch_size": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with config.yaml, shards/ and runs/run, two steps long; it ended before it wrote its summary."""
    directory = tmp_path_factory.mktemp("trained")
    config = write_config(directory / "config.yaml", make_shards(directory), stages=[STAGE], local_ranks=1)
    done = train(config)
    assert done.returncode == 0, done.stderr
    (directory / "runs" / "run" / "summary.json").unlink()
    return directory


@pytest.fixture()
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, whose config names the shards of the copy."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    write_config(tmp_path / "config.yaml", tmp_path / "shards", stages=[STAGE], local_ranks=1)
    return tmp_path


def go_on(run: Path, *overrides: str) -> str:
    """What is said when the run goes on: the error, or the news; nothing when all is as it was."""
    config = load_yaml(run / "config.yaml", RunConfig, list(overrides))
    directory = RunDirectory(config)
    try:
        checkpoint = directory.check(config)
        return "\n".join(directory.compare_data(checkpoint, ShardList.of(read_indices(config.data))))
    except UserError as error:
        return f"error: {error}"


def rewrite_index(shards: Path, old: str, new: str) -> None:
    file = shards / "index.json"
    text = file.read_text()
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1))


def reverse_genome(shards: Path) -> None:
    """Shards of the genome read backwards, under the same names."""
    letters = "".join(random.Random(1).choices("ACGT", k=6000))
    fasta, config = shards.parent / "genome.fa", shards.parent / "prep.yaml"
    text = f"{letters[:2000]}{'N' * 40}{letters[2040:]}"[::-1]
    fasta.write_text(f">chr1\n{text}\n")
    config.write_text(
        f"fasta: {fasta}\nassembly: toy\noutput: {shards}\nchunk_length: 500\nchunks_per_shard: 4\n"
        "splits:\n  by_fraction: {train: 0.8, valid: 0.2}\n"
    )
    shutil.rmtree(shards)
    subprocess.run([sys.executable, "-m", "hyena_ds", "prep", "build", str(config)], check=True, cwd=ROOT, timeout=60)


def without_list(run: Path) -> None:
    """The run as a version before the list of digests left it."""
    directory = run / "runs" / "run"
    (directory / "shards.json").unlink()
    for checkpoint in (directory / "checkpoints").glob("step-*"):
        manifest = read_manifest(checkpoint)
        write_manifest(checkpoint, manifest.run, manifest.step, manifest.files)


@pytest.mark.slow
def test_the_same_bytes_go_on_from_a_copy_a_relative_path_and_an_address_with_another_signature(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go_on(run) == ""
    shutil.copytree(run / "shards", run / "copy")
    assert go_on(run, f"data.sources.0.shards={run}/copy") == ""
    monkeypatch.chdir(run)
    assert go_on(run, "data.sources.0.shards=copy/../shards") == ""
    # Line ends and blanks of index.json are no content.
    index = run / "copy" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=2))
    assert go_on(run, "data.sources.0.shards=copy") == ""
    with serving(run / "shards") as server:
        for query in ("", "?signature=1", "?signature=2"):
            place = f"data.sources.0.shards={server.place}{query}"
            assert go_on(run, place, f"data.cache.directory={run}/cache") == ""


@pytest.mark.slow
def test_other_bytes_under_the_same_path_are_refused_by_the_first_shard_before_anything_is_written(run: Path) -> None:
    reverse_genome(run / "shards")
    before = tree(run / "runs")
    refused = train(run / "config.yaml", MORE)
    assert refused.returncode == 2, refused.stderr
    (sentence,) = (line for line in refused.stderr.splitlines() if line.startswith("hyena-ds: error: "))
    assert (
        "was trained on other data than these: data.sources.0: shard train-000000.tar (train): found SHA-256"
        in sentence
    )
    assert tree(run / "runs") == before
    assert go_on(run).startswith("error: ") and "shard train-000000.tar" in go_on(run)


@pytest.mark.slow
def test_it_goes_on_from_a_copy_and_the_next_checkpoint_has_the_same_digest(run: Path) -> None:
    (run / "shards").rename(run / "elsewhere")
    done = train(run / "config.yaml", MORE, f"data.sources.0.shards={run}/elsewhere")
    assert done.returncode == 0, done.stderr
    assert "changed since: data.sources.0.shards: " in done.stdout and f" -> {run}/elsewhere" in done.stdout
    assert len(digests(run)) == 2 and len(set(digests(run))) == 1


def digests(run: Path) -> list[str | None]:
    manifests: list[Manifest] = [
        read_manifest(path) for path in sorted((run / "runs" / "run" / "checkpoints").glob("step-*"))
    ]
    return [manifest.shards for manifest in manifests]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("offset", "of shard train-000000.tar: the index has another offset, coordinates or runs"),
        ("start", "of shard train-000000.tar: the index has another offset, coordinates or runs"),
        ("n_runs", "the index has another offset, coordinates or runs"),
        ("assembly", "the index has another assembly, chunk length or order"),
        ("missing", "the index has 3 chunks of it, wanted 4"),
    ],
)
def test_an_edited_index_of_the_same_shards_is_refused_and_the_chunk_is_named(run: Path, key: str, says: str) -> None:
    file = run / "shards" / "index.json"
    raw = json.loads(file.read_text())
    chunk = raw["chunks"][1]
    if key == "offset":
        chunk["offset"] -= 1
    elif key == "start":
        chunk["start"], chunk["end"] = chunk["start"] + 1, chunk["end"] + 1
    elif key == "n_runs":
        chunk["n_runs"] = [[3, 2]]
    elif key == "assembly":
        raw["assembly"] = "other"
    else:
        del raw["chunks"][3]
    file.write_text(json.dumps(raw))
    parse_index(file.read_bytes(), "still an index")
    said = go_on(run)
    assert "error: " in said and says in said, said


@pytest.mark.slow
def test_a_shard_edited_in_place_with_its_times_set_back_is_found(run: Path) -> None:
    config = run / "config.yaml"
    shard = run / "shards" / "train-000001.tar"
    before = shard.stat()
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    with shard.open("r+b") as file:
        file.write(body)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = train(config, MORE)
    assert refused.returncode == 2 and "train-000001.tar: the bytes do not match the SHA-256" in refused.stderr


@pytest.mark.slow
def test_two_sources_may_not_change_places(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    make_shards(tmp_path / "b", splits="{train: 0.7, valid: 0.3}")
    first, second = (f"{{shards: {path}}}" for path in (run / "shards", tmp_path / "b" / "shards"))
    config = load_yaml(run / "config.yaml", RunConfig, [f"data.sources=[{first}, {second}]", "name=two"])
    directory = RunDirectory(config)
    indices = read_indices(config.data)
    directory.create(config, ShardList.of(indices))
    directory.compare_data(None, ShardList.of(indices))
    with pytest.raises(UserError, match=r"other data than these: data\.sources\.0: shard train-00000"):
        directory.compare_data(None, ShardList.of(indices[::-1]))


@pytest.mark.slow
def test_a_run_from_before_records_its_data_and_says_so_and_its_path_stays_until_then(trained: Path, run: Path) -> None:
    without_list(run)
    same = f"data.sources.0.shards={trained}/shards"
    assert "is from before the data of a run were recorded, so nothing can be compared" in go_on(run, same)
    shutil.copytree(run / "shards", run / "copy")
    moved = go_on(run, f"data.sources.0.shards={run}/copy")
    assert "data.sources.0.shards: " in moved and "set them back" in moved
    done = train(run / "config.yaml", MORE, same)
    assert done.returncode == 0, done.stderr
    assert "is from before the data of a run were recorded" in done.stdout
    assert "is from before the data of a run were recorded" in (run / "runs" / "run" / "log.txt").read_text()
    assert digests(run)[0] is None and digests(run)[1] is not None
    assert go_on(run, MORE, f"data.sources.0.shards={run}/copy") == ""


@pytest.mark.slow
def test_a_lost_or_damaged_list_is_made_anew_of_the_same_data_and_other_data_are_refused(run: Path) -> None:
    file = run / "runs" / "run" / "shards.json"
    whole = file.read_text()
    for text in (
        None,
        "",
        whole[:-9],
        whole.replace('"sha256": "', '"sha256": "0', 1),
        "[" * 100_000,
        '{"sources": 1}',
    ):
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        said = go_on(run)
        assert "error: " not in said and (text is None or "written anew" in said), said
    rewrite_index(run / "shards", '"assembly": "toy"', '"assembly": "other"')
    assert "which shard differs cannot be said" in go_on(run)
    file.unlink()
    assert "which shard differs cannot be said" in go_on(run)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_compared_by_its_digest_and_the_list_beside_it_names_the_shard(
    run: Path,
) -> None:
    (checkpoint,) = (run / "runs" / "run" / "checkpoints").glob("step-*")
    named = ("name=other", f"resume={checkpoint}")
    assert go_on(run, *named) == ""
    alone = shutil.copytree(checkpoint, run / "alone" / checkpoint.name)
    assert go_on(run, "name=other", f"resume={alone}") == ""
    reverse_genome(run / "shards")
    assert "shard train-000000.tar" in go_on(run, *named)
    assert "which shard differs cannot be said" in go_on(run, "name=other", f"resume={alone}")
