"""Shards from afar give the stream of the directory that they were copied from, and are fetched once for a node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.config.remote import CacheConfig
from hyena_ds.config.schema import DataConfig, SourceConfig
from hyena_ds.data.remote.ahead import Ahead
from hyena_ds.data.remote.places import check_room, read_indices
from hyena_ds.data.shards import read_index
from hyena_ds.data.stream import Sources, StageStream
from hyena_ds.errors import LocalError, UserError
from tests.data.genomes import plan
from tests.data.remote.afar_reader import L, digest
from tests.data.remote.afar_server import AfarServer, serving
from tests.paths import ROOT


@pytest.fixture
def server(shards: Path) -> Iterator[AfarServer]:
    with serving(shards) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(shards: Path) -> str:
    """What the directory gives."""
    return digest(DataConfig((SourceConfig(str(shards)),), shuffle_shards=2))


def from_afar(tmp_path: Path, *places: str, **changes: Any) -> DataConfig:
    cache = CacheConfig(str(tmp_path / "cache"), **{"gib": 1.0, "stall": 1.0, "patience": 5.0, **changes})
    return DataConfig(tuple(SourceConfig(place) for place in places), shuffle_shards=2, cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_breaks_connections_gives_the_stream_of_the_directory(
    server: AfarServer, wanted: str, shards: Path, tmp_path: Path, workers: int
) -> None:
    for shard in read_index(shards).shards[:3]:
        server.faults[shard.file] = ["break 1000", 503, "break 2000", "wrong"]
    server.faults["index.json"] = ["break 100", 500, 503]
    config = from_afar(tmp_path, server.place)
    assert digest(DataConfig(config.sources, shuffle_shards=2, workers=workers, cache=config.cache)) == wanted


def test_a_command_gives_the_stream_of_the_directory(wanted: str, shards: Path, tmp_path: Path) -> None:
    assert digest(from_afar(tmp_path, f"pipe:cat {shards}/{{shard}}")) == wanted


def test_a_bucket_gives_the_stream_of_the_directory(
    server: AfarServer, wanted: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install boto3")
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.address,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "nowhere-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    first, second = read_index(shards).shards[:2]
    server.faults[first.file] = [503, "break 1000", "break 2000"]
    config = from_afar(tmp_path, "s3://genome")
    # The server takes /genome/NAME: a bucket in the path, as every server but Amazon's own.
    assert digest(config) == wanted
    assert (first.file, "bytes=1000-") in server.asked
    server.always[second.file] = 404
    other = from_afar(tmp_path / "other", "s3://genome")
    with pytest.raises(LocalError, match=rf"s3://genome/{second.file}: the shard cannot be fetched: .* 404"):
        digest(other)


@pytest.mark.slow
def test_two_processes_of_a_node_fetch_every_shard_once_and_read_the_same(
    server: AfarServer, wanted: str, shards: Path, tmp_path: Path
) -> None:
    server.seconds_per_answer = 0.05
    command = [sys.executable, "-m", "tests.data.remote.afar_reader", server.place, str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    readers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        found = [reader.communicate(timeout=60)[0].strip() for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert found == [wanted, wanted]
    train = [shard.file for shard in read_index(shards).shards if shard.split == "train"]
    assert {file: server.times(file) for file in train} == dict.fromkeys(train, 1)


def test_a_cache_of_one_group_is_enough_and_less_is_refused(
    server: AfarServer, wanted: str, shards: Path, tmp_path: Path
) -> None:
    index = read_index(shards)
    two = sum(sorted(shard.bytes for shard in index.shards if shard.split == "train")[-2:]) / 2**30
    config = from_afar(tmp_path, server.place, gib=two)
    check_room(config, [index])
    assert digest(config) == wanted
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= config.cache.bytes
    smaller = from_afar(tmp_path, server.place, gib=two * 0.99)
    with pytest.raises(UserError, match=r"data\.cache\.gib: found .*, wanted at least .* within 2 shards"):
        check_room(smaller, [index])
    check_room(DataConfig((SourceConfig(str(shards)),), cache=smaller.cache), [index])


def test_the_group_under_way_and_the_next_are_fetched_before_they_are_read(
    server: AfarServer, shards: Path, tmp_path: Path
) -> None:
    config = from_afar(tmp_path, server.place)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 8, steps=25))
    ((now, later),) = stream.groups(0)
    epoch = stream.epochs(1)[0].shards
    assert len(now) == len(later) == 2 and set(epoch[:4]) <= {*now, *later}
    ahead = Ahead(stream)
    ahead.reached(0)
    cache, by_file = tmp_path / "cache", stream.sources.tracks[0].index_by_file
    deadline = time.monotonic() + 20
    while not all((cache / f"{by_file[file].sha256}.tar").exists() for file in (*now, *later)):
        assert time.monotonic() < deadline, server.asked
        time.sleep(0.02)
    ahead.close()
    fetched = [file for file, _ in server.asked if file != "index.json"]
    assert fetched == [*now, *later]


def test_a_group_that_leaves_no_room_for_the_next_is_fetched_alone(
    server: AfarServer, shards: Path, tmp_path: Path
) -> None:
    largest = max(shard.bytes for shard in read_index(shards).shards)
    config = from_afar(tmp_path, server.place, gib=2.5 * largest / 2**30)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 8, steps=25))
    assert [shard.file for _, shard in Ahead(stream)._wanted(0)] == stream.groups(0)[0][0]


def test_groups_follow_the_samples_of_every_source(shards: Path, tmp_path: Path) -> None:
    config = DataConfig((SourceConfig(str(shards), 1.0), SourceConfig(str(shards), 3.0)), shuffle_shards=2)
    stream = StageStream(Sources(config, "train"), 7, plan(L, 100, steps=4))
    for step in range(4):
        drawn: set[int] = set()
        groups = stream.groups(step)
        for sample in stream.samples(step):
            if sample.source not in drawn:  # the first of a source belongs to the group that it has come to
                drawn.add(sample.source)
                track = stream.sources.tracks[sample.source]
                offset_free = track.shards(sample.start, 1) + track.shards(sample.start + L, 1)
                assert set(offset_free) & set(groups[sample.source][0])
        assert drawn == {0, 1}


def test_an_index_that_changes_at_its_source_does_not_change_a_process(
    server: AfarServer, shards: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    server.directory = copy
    config = from_afar(tmp_path, server.place)
    before = read_indices(config)
    (copy / "index.json").write_text("changed")
    assert read_indices(config) == before and server.times("index.json") == 1
    again = from_afar(tmp_path, server.place, stall=0.9)  # another cache's settings stand for another process
    assert read_indices(again, kept=True) == before and server.times("index.json") == 1
    with pytest.raises(UserError, match=rf"{server.place}/index.json: not a readable index"):
        read_indices(from_afar(tmp_path, server.place, stall=0.8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"train-000000.tar"', '"../train-000000.tar"'), "has no plain name"),
        (lambda text: text.replace('"sha256": "', '"sha256": "../'), "has no plain name, size and SHA-256"),
    ],
)
def test_an_index_cannot_name_files_outside_its_place_or_the_cache(
    server: AfarServer, shards: Path, tmp_path: Path, change: Any, words: str
) -> None:
    server.directory = tmp_path
    (tmp_path / "index.json").write_text(change((shards / "index.json").read_text()))
    with pytest.raises(UserError, match=words):
        read_indices(from_afar(tmp_path, server.place))


def test_an_index_that_is_not_there_is_named(server: AfarServer, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=rf"{server.address}/nowhere/index.json: the index cannot be fetched: .* 404"):
        read_indices(from_afar(tmp_path, f"{server.address}/nowhere"))
    assert list((tmp_path / "cache").iterdir()) == []
