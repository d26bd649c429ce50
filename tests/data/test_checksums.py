"""The memory of checksums saves reading, and is never wrong."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from hyena_ds.config.remote import CacheConfig
from hyena_ds.data import checksums
from hyena_ds.data.checksums import verify_shards
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.shards import read_index, sha256_of
from hyena_ds.errors import UserError


@pytest.fixture()
def place(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shards, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.fixture()
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []

    def counted(path: Path) -> str:
        found.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checksums, "sha256_of", counted)
    return found


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have been lying there for a while."""
    now = time.time_ns
    monkeypatch.setattr(checksums.time, "time_ns", lambda: now() + 60_000_000_000)


def test_what_was_hashed_is_not_hashed_again_by_any_share(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    every = read_index(place).shards
    for share in range(2):
        verify_shards(str(place), every[share::2], share)
    assert sorted(hashed) == sorted(shard.file for shard in every)
    hashed.clear()
    verify_shards(str(place), every, 0)
    monkeypatch.chdir(place.parent)
    verify_shards("shards", every, 0)
    assert hashed == []


def test_a_file_that_has_just_changed_is_not_remembered(place: Path, hashed: list[str]) -> None:
    every = read_index(place).shards
    verify_shards(str(place), every, 0)
    verify_shards(str(place), every, 0)
    assert len(hashed) == 2 * len(every)


@pytest.mark.parametrize("how", ["in place", "replaced", "in place, times set back", "replaced, times set back"])
def test_a_changed_file_is_hashed_again(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    later(monkeypatch)
    every = read_index(place).shards
    verify_shards(str(place), every, 0)
    file = place / every[0].file
    before, body = file.stat(), bytearray(file.read_bytes())
    body[-1] ^= 1
    if how.startswith("replaced"):
        (place / "new").write_bytes(body)
        (place / "new").replace(file)
    else:
        with file.open("r+b") as changed:
            changed.write(body)
    if how.endswith("back"):
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=f"{file.name}: the bytes do not match"):
        verify_shards(str(place), every, 0)


@pytest.mark.parametrize(
    "damage", ["not JSON", "a list", "other numbers", "other types", "a directory", "not writable"]
)
def test_a_damaged_or_useless_memory_costs_time_alone(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    later(monkeypatch)
    every = read_index(place).shards
    verify_shards(str(place), every, 0)
    memory = place.parent / "cache" / "hyena-ds" / "checksums"
    (file,) = memory.glob("*.json")
    text = file.read_text()
    bad = {
        "not JSON": "{" + "[" * 100_000,
        "a list": "[1, 2]",
        "other numbers": text.replace("1", "2"),
        "other types": '{"train-000000.tar": {"a": null}}',
    }
    if damage in bad:
        file.write_text(bad[damage])
    elif damage == "a directory":
        file.unlink()
        file.mkdir()
    else:
        shutil.rmtree(memory)
        memory.write_text("a file where the directory should be")
    hashed.clear()
    verify_shards(str(place), every, 0)
    assert every[0].file in hashed
    body = bytearray((place / every[0].file).read_bytes())
    body[-1] ^= 1
    (place / every[0].file).write_bytes(body)
    with pytest.raises(UserError, match="do not match"):
        verify_shards(str(place), every, 0)


def test_kept_shards_are_hashed_once_though_they_are_touched_at_every_use(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    every = list(read_index(place).shards)
    cache = ShardCache(CacheConfig(str(place.parent / "kept")))
    for shard in every:
        cache.fetch(f"pipe:cat {place}/{{shard}}", shard)
    read: list[Path] = []
    monkeypatch.setattr(checksums, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    cache.remove_damaged(every)
    assert len(read) == len(every)
    for shard in every:
        with cache.opened("pipe:false {shard}", shard):
            pass
    cache.remove_damaged(every[::2], 0)
    cache.remove_damaged(every[1::2], 1)
    assert len(read) == len(every)
    tar = cache.path / f"{every[0].sha256}.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    cache.remove_damaged(every)
    assert not tar.exists() and cache.has(every[1])
