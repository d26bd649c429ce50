"""A damaged directory of shards is named before it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.data.shards import read_index, verify_shard
from hyena_ds.errors import UserError


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def problem(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_index(directory)
    return str(caught.value)


def edit(directory: Path, change: Any) -> None:
    raw = json.loads((directory / "index.json").read_text())
    change(raw)
    (directory / "index.json").write_text(json.dumps(raw))


def test_the_index_is_read_back_as_it_was_written(shards: Path) -> None:
    assert read_index(shards).to_json() == (shards / "index.json").read_text()


def test_a_directory_without_an_index_is_named(tmp_path: Path) -> None:
    assert "found no index.json, wanted a directory of shards" in problem(tmp_path)
    assert "found no index.json" in problem(tmp_path / "nowhere")


def test_whole_shards_pass_and_a_flipped_byte_is_found_by_its_checksum(copy: Path) -> None:
    index = read_index(copy)
    for shard in index.shards:
        verify_shard(copy, shard)
    path = copy / index.shards[1].file
    damaged = bytearray(path.read_bytes())
    damaged[index.chunks[-1].offset % len(damaged)] ^= 1
    path.write_bytes(damaged)
    read_index(copy)
    with pytest.raises(UserError, match=rf"{index.shards[1].file}: the bytes do not match the SHA-256"):
        verify_shard(copy, index.shards[1])


def test_a_short_shard_is_found_by_its_size(copy: Path) -> None:
    path = copy / "train-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert problem(copy).endswith(
        f"train-000000.tar: found {size - 1} bytes, wanted {size}; copy or prepare the shards again"
    )


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "valid-000000.tar").unlink()
    assert "valid-000000.tar: index.json lists this shard, but the file is missing" in problem(copy)


def test_a_shard_that_the_index_does_not_list_is_named(copy: Path) -> None:
    (copy / "extra.tar").write_bytes(b"")
    assert "extra.tar: found a shard that index.json does not list" in problem(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": "hyena-ds shards 1"}', "\x00"])
def test_a_broken_index_is_named(copy: Path, text: str) -> None:
    (copy / "index.json").write_text(text)
    assert "index.json: not a readable index" in problem(copy)


def test_an_index_of_another_format_is_refused(copy: Path) -> None:
    edit(copy, lambda raw: raw.update(format="other 9"))
    assert "found format 'other 9', wanted 'hyena-ds shards 1'" in problem(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["chunks"][0].pop("offset"),
        lambda raw: raw["chunks"][0].update(colour="red"),
        lambda raw: raw["chunks"][0].update(n_runs=[[1]]),
        lambda raw: raw["shards"][0].pop("sha256"),
    ],
)
def test_an_index_with_a_key_too_few_or_too_many_is_named(copy: Path, change: Any) -> None:
    edit(copy, change)
    assert "not a readable index" in problem(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["chunks"][0].update(shard=99),
        lambda raw: raw["chunks"][0].update(shard=-1),
        lambda raw: raw["chunks"][-1].update(offset=10**9),
        lambda raw: raw["chunks"][0].update(end=raw["chunks"][0]["start"] - 1),
        lambda raw: raw["chunks"][0].update(start="0"),
    ],
    ids=["shard beyond the list", "negative shard", "offset beyond the tar", "negative length", "text for a number"],
)
def test_a_chunk_that_does_not_lie_in_its_shard_is_refused_before_it_is_read(copy: Path, change: Any) -> None:
    edit(copy, change)
    assert "index.json" in problem(copy)
