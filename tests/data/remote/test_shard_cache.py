"""A node fetches a shard once, whole and right, keeps what fits, and says which one does not come."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_ds.config.remote import CacheConfig
from hyena_ds.data.remote import fetching, shard_cache
from hyena_ds.data.remote.fetching import WRONG_BYTES
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.shards import Shard, ShardIndex, read_index
from hyena_ds.errors import LocalError
from tests.data.remote.afar_server import AfarServer, serving
from tests.paths import ROOT

BOUND = 30.0
"""Seconds within which a wait of one or two ends on a busy machine; what would wait for ever does not."""


@pytest.fixture
def server(shards: Path) -> Iterator[AfarServer]:
    with serving(shards) as server:
        yield server


@pytest.fixture
def index(shards: Path) -> ShardIndex:
    return read_index(shards)


def settings(tmp_path: Path, **changes: Any) -> CacheConfig:
    return CacheConfig(**{"directory": str(tmp_path / "cache"), "gib": 1.0, "stall": 0.5, "patience": 3.0, **changes})


def content(cache: ShardCache, place: str, shard: Shard) -> bytes:
    with cache.opened(place, shard) as file:
        return os.pread(file, shard.bytes + 1, 0)


def kept(cache: ShardCache) -> set[str]:
    return {path.stem for path in cache.path.glob("*.tar")}


def room(index: ShardIndex, count: int) -> float:
    """GiB for `count` shards; those of the small genome differ little."""
    return (count * max(shard.bytes for shard in index.shards)) / 2**30


def sentence(action: Callable[[], object]) -> str:
    with pytest.raises(LocalError) as caught:
        action()
    return str(caught.value)


def test_a_shard_is_fetched_once_and_has_the_bytes_of_the_directory(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    cache = ShardCache(settings(tmp_path))
    for _ in range(3):
        for shard in index.shards:
            assert content(cache, server.place, shard) == (shards / shard.file).read_bytes()
    assert [server.times(shard.file) for shard in index.shards] == [1] * len(index.shards)
    ids = np.empty(10, dtype=np.uint8)
    cache.read_into(server.place, index.shards[0], ids, 700)
    assert ids.tobytes() == (shards / index.shards[0].file).read_bytes()[700:710]
    assert len(server.asked) == len(index.shards)


def test_broken_and_silent_connections_and_busy_answers_are_resumed_at_the_missing_byte(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    shard = index.shards[0]
    server.faults[shard.file] = [503, "break 1000", "break 0", "break 700", "stall", 500]
    cache = ShardCache(settings(tmp_path))
    assert content(cache, server.place, shard) == (shards / shard.file).read_bytes()
    half = 1700 + (shard.bytes - 1700) // 2
    begins = [None, None, 1000, 1000, 1700, half, half]
    assert [wanted for _, wanted in server.asked] == [b if b is None else f"bytes={b}-" for b in begins]


def test_wrong_bytes_are_fetched_again_from_the_start_and_given_up_when_they_stay_wrong(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    once, ever = index.shards[:2]
    server.faults[once.file] = ["wrong"]
    server.always[ever.file] = "wrong"
    cache = ShardCache(settings(tmp_path))
    assert content(cache, server.place, once) == (shards / once.file).read_bytes()
    assert server.asked == [(once.file, None)] * 2
    said = sentence(lambda: content(cache, server.place, ever))
    assert said.startswith(
        f"{server.place}/{ever.file}: found bytes with another SHA-256 than index.json says, 3 times"
    )
    assert server.times(ever.file) == WRONG_BYTES and kept(cache) == {once.sha256}


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [
        (404, "the shard cannot be fetched: the server answers 404 (Not Found)", 1),
        (403, "the server answers 403", 1),
        (503, "s of attempts (the server answers 503", None),
        ("break 0", "s of attempts (the connection ended after 0 of", None),
        ("hang", "s of attempts (timed out)", None),
    ],
)
def test_a_shard_that_does_not_come_is_named_within_patience(
    server: AfarServer, index: ShardIndex, tmp_path: Path, fault: Any, words: str, requests: int | None
) -> None:
    shard = index.shards[0]
    server.always[shard.file] = fault
    began = time.monotonic()
    said = sentence(lambda: content(ShardCache(settings(tmp_path, patience=2.0)), server.place, shard))
    assert said.startswith(f"{server.place}/{shard.file}: ") and words in said
    assert time.monotonic() - began < BOUND
    assert server.times(shard.file) == requests or (requests is None and server.times(shard.file) > 1)


def test_the_same_bytes_again_and_again_are_no_progress(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "LONGEST_PAUSE", 0.2)
    first, second = index.shards[:2]
    server.always[first.file] = "break 0"
    cache, said = ShardCache(settings(tmp_path, patience=3.5, stall=3.0)), list[str]()
    cut = f"pipe:head -c 9 {shards}/{{shard}}; false"
    for place, shard in ((server.place, first), (cut, second)):
        reading = threading.Thread(
            target=lambda p=place, s=shard: said.append(sentence(lambda: content(cache, p, s))), daemon=True
        )
        reading.start()
        reading.join(BOUND)
        assert not reading.is_alive()
    assert "the connection ended after 0 of" in said[0] and "the command ended with code 1" in said[1]


def test_a_server_that_is_not_there_is_named(index: ShardIndex, tmp_path: Path) -> None:
    shard, cache = index.shards[0], ShardCache(settings(tmp_path, patience=0.6, stall=0.1))
    assert "Connection refused" in sentence(lambda: content(cache, "http://127.0.0.1:9/x", shard))


def test_a_password_in_an_address_is_not_shown(server: AfarServer, index: ShardIndex, tmp_path: Path) -> None:
    shard, cache = index.shards[0], ShardCache(settings(tmp_path))
    server.always[shard.file] = 404
    said = sentence(lambda: content(cache, f"{server.place}?signature=hush", shard))
    assert "hush" not in said and f"{server.place}/{shard.file}: " in said and "404" in said
    server.always[shard.file] = "ok"
    assert content(cache, f"{server.place}?signature=hush", shard)


def test_a_command_brings_shards_and_its_last_complaint_is_shown(
    index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    one, other = index.shards[:2]
    cache = ShardCache(settings(tmp_path, patience=1.0, stall=0.4))
    assert content(cache, f"pipe:cat {shards}/{{shard}}", one) == (shards / one.file).read_bytes()
    said = sentence(lambda: content(cache, "pipe:printf '%st %sre\\n' no the >&2; false {shard}", other))
    assert f"pipe:*** ({other.file}): the shard cannot" in said and "the command ended with code 1: not there" in said
    began = time.monotonic()
    said = sentence(lambda: content(cache, f"pipe:head -c 9 {shards}/{{shard}}; sleep 60", other))
    assert "the command wrote nothing for 0.4 seconds" in said and time.monotonic() - began < BOUND


def test_the_cache_keeps_within_its_bound_and_removes_what_was_used_least_recently(
    server: AfarServer, index: ShardIndex, tmp_path: Path
) -> None:
    first, second, third, fourth = index.shards[:4]
    cache = ShardCache(settings(tmp_path, gib=room(index, 3)))
    for shard in (first, second, third, first):
        content(cache, server.place, shard)
        time.sleep(0.02)
    content(cache, server.place, fourth)
    assert kept(cache) == {first.sha256, third.sha256, fourth.sha256}
    for shard in (*index.shards, *index.shards[::-1]):
        content(cache, server.place, shard)
        assert sum(path.stat().st_size for path in cache.path.iterdir() if path.suffix != ".lock") <= cache.config.bytes


def test_what_is_open_is_never_removed_and_too_little_room_is_said(
    server: AfarServer, index: ShardIndex, tmp_path: Path
) -> None:
    first, second, third = index.shards[:3]
    cache = ShardCache(settings(tmp_path, gib=room(index, 2), patience=0.5))
    with cache.opened(server.place, first), cache.opened(server.place, second):
        said = sentence(lambda: content(cache, server.place, third))
        assert f"shard {third.file} of " in said and "raise data.cache.gib" in said
        assert kept(cache) == {first.sha256, second.sha256}
    content(cache, server.place, third)
    assert third.sha256 in kept(cache)
    tiny = ShardCache(settings(tmp_path, gib=first.bytes / 2**31))
    assert "for shard train-000000.tar alone" in sentence(lambda: content(tiny, server.place, first))


def test_a_kept_copy_that_was_cut_or_damaged_is_fetched_again(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    cut, damaged, whole = index.shards[:3]
    cache = ShardCache(settings(tmp_path))
    for shard in (cut, damaged, whole):
        content(cache, server.place, shard)
    os.truncate(cache.path / f"{cut.sha256}.tar", 100)
    with (cache.path / f"{damaged.sha256}.tar").open("r+b") as file:
        file.write(b"?")
    cache.remove_damaged(list(index.shards))
    for shard in (cut, damaged, whole):
        assert content(cache, server.place, shard) == (shards / shard.file).read_bytes()
    assert [server.times(shard.file) for shard in (cut, damaged, whole)] == [2, 2, 1]


FETCHER = """
import sys
from hyena_ds.config.remote import CacheConfig
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.shards import read_index
place, directory, shards = sys.argv[1:]
ShardCache(CacheConfig(directory, 1.0, 30.0, 60.0)).fetch(place, read_index(shards).shards[0])
"""


def start_fetcher(server: AfarServer, shards: Path, cache: ShardCache) -> subprocess.Popen[bytes]:
    """Another process of this node that fetches the first shard, half of which has come when this returns."""
    shard = read_index(shards).shards[0]
    server.faults[shard.file] = ["stall"]
    command = [sys.executable, "-c", FETCHER, server.place, str(cache.path), str(shards)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    part = cache.path / f"{shard.sha256}.{shard.bytes}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == shard.bytes // 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_when_the_process_that_fetches_is_killed_another_one_goes_on_from_its_bytes(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path
) -> None:
    shard, cache = index.shards[0], ShardCache(settings(tmp_path))
    process = start_fetcher(server, shards, cache)
    try:
        waiting = threading.Thread(target=lambda: content(cache, server.place, shard))
        waiting.start()
        time.sleep(0.2)
        assert server.times(shard.file) == 1 and kept(cache) == set()
    finally:
        process.kill()
        process.wait()
    waiting.join(5)
    assert content(cache, server.place, shard) == (shards / shard.file).read_bytes()
    assert server.asked == [(shard.file, None), (shard.file, f"bytes={shard.bytes // 2}-")]


def test_waiting_for_a_process_that_fetches_nothing_any_more_ends_and_names_it(
    server: AfarServer, index: ShardIndex, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_TAKES_OVER", 0.0)
    shard, cache = index.shards[0], ShardCache(settings(tmp_path, patience=0.5))
    process = start_fetcher(server, shards, cache)
    try:
        said = sentence(lambda: content(cache, server.place, shard))
        assert (
            f"{server.place}/{shard.file}: process {process.pid} of this node fetches this shard, and no byte" in said
        )
    finally:
        process.kill()
        process.wait()


def test_who_waited_for_a_shard_that_does_not_come_does_not_try_again(
    server: AfarServer, index: ShardIndex, tmp_path: Path
) -> None:
    shard = index.shards[0]
    server.always[shard.file] = 503
    said: list[str] = []

    def read() -> None:
        said.append(sentence(lambda: content(ShardCache(settings(tmp_path, patience=1.5)), server.place, shard)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each that had tried itself would say after how many seconds of its own, and of fewer than the patience of all four.
    assert len(set(said)) == 1 and len(said) == 4 and "503" in said[0]


def test_a_cache_directory_that_cannot_be_written_is_named(
    server: AfarServer, index: ShardIndex, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cache = ShardCache(settings(tmp_path, directory=str(tmp_path / "file" / "cache")))
    said = sentence(lambda: content(cache, server.place, index.shards[0]))
    assert str(tmp_path / "file") in said and "Not a directory" in said and "data.cache.directory" in said
