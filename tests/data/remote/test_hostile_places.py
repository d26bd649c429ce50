"""Whoever serves shards is not trusted: what comes ends where the index says, and an index is checked before it is used."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_ds.config.remote import CacheConfig
from hyena_ds.data.remote import places
from hyena_ds.data.remote.places import read_indices
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.remote.transfer import Answer, Refused, append
from hyena_ds.data.shards import ShardIndex, parse_index, read_index
from hyena_ds.data.track import Track
from hyena_ds.errors import LocalError, UserError
from tests.data.genomes import data_config

SEED = 12
MUTANTS = 400


class Liar(ThreadingHTTPServer):
    """Answers every request with `status`, `headers` and `body`, and the body again and again where it is `endless`."""

    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.status = 200
        self.body = body
        self.headers: list[tuple[str, str]] = []
        self.endless = False
        self.sent = 0

    @property
    def place(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Liar

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.end_headers()
        try:
            while True:
                self.wfile.write(self.server.body)
                self.server.sent += len(self.server.body)
                if not self.server.endless:
                    return
        except OSError:
            pass  # the other end has heard enough

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def lying(body: bytes) -> Iterator[Liar]:
    server = Liar(body)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def index(shards: Path) -> ShardIndex:
    return read_index(shards)


SLOW_STARTS = {"stall": 5.0, "patience": 6.0}  # what breaks is known at once, but may take seconds to start


def settings(tmp_path: Path, stall: float = 0.5, patience: float = 1.5) -> CacheConfig:
    return CacheConfig(directory=str(tmp_path / "cache"), gib=1.0, stall=stall, patience=patience)


def fetched(tmp_path: Path, place: str, index: ShardIndex, **patience: float) -> str:
    """What is said of fetching the first shard, or nothing where it came whole."""
    try:
        ShardCache(settings(tmp_path, **patience)).fetch(place, index.shards[0])
    except LocalError as error:
        return str(error)
    return ""


def kept_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.suffix in (".tar", ".part"))


def test_bytes_that_do_not_end_are_stopped_at_the_first_one_too_many(tmp_path: Path) -> None:
    given: list[int] = []

    def read(count: int) -> bytes:
        given.append(count)
        return b"x" * count

    with pytest.raises(Refused, match="more bytes than the 1,000,000"):
        append(lambda begin: Answer(0, None, read, lambda: None), tmp_path / "part", 1_000_000, lambda *_: None)
    assert sum(given) == 1_000_001 and (tmp_path / "part").stat().st_size == 0


def test_a_part_that_is_longer_than_wanted_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 100)
    blocks = [b"right", b""]
    answered: list[int] = []

    def open_(begin: int) -> Answer:
        answered.append(begin)
        return Answer(begin, None, lambda _: blocks.pop(0), lambda: None)

    assert append(open_, tmp_path / "part", 10, lambda *_: None) == ""
    assert answered == [0] and (tmp_path / "part").read_bytes() == b"right"


def test_a_server_that_sends_for_ever_is_stopped_and_nothing_is_kept(index: ShardIndex, tmp_path: Path) -> None:
    with lying(b"x" * 65536) as server:
        server.endless = True
        said = fetched(tmp_path, server.place, index)
        assert f"it has more bytes than the {index.shards[0].bytes:,} that are wanted" in said
        assert server.sent < 2**26 and kept_bytes(tmp_path) == 0


def test_a_command_that_writes_for_ever_is_ended(index: ShardIndex, tmp_path: Path) -> None:
    process = tmp_path / "process"
    said = fetched(tmp_path, f"pipe:echo $$ > {process}; exec yes {{shard}}", index)
    assert "it has more bytes than" in said and kept_bytes(tmp_path) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(process.read_text()), 0)


def test_a_command_that_complains_at_length_leaves_its_last_complaint(index: ShardIndex, tmp_path: Path) -> None:
    place = "pipe:yes again {shard} | head -n 300000 >&2; echo the end >&2; exit 3"
    said = fetched(tmp_path, place, index, **SLOW_STARTS)
    assert "the command ended with code 3: the end" in said


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([("Content-Length", "abc")], ""),
        ([("Content-Length", "-5")], ""),
        ([("Content-Length", "1" + "0" * 30)], "wanted at most"),
        ([("Content-Length", "9" * 5000)], ""),
        ([("Content-Length", "SIZE"), ("Content-Length", "7")], ""),
        ([("Content-Length", "7"), ("Content-Length", "SIZE")], "3 times"),
        ([("Content-Encoding", "gzip")], ""),
        ([("Transfer-Encoding", "chunked")], "cannot be fetched"),
        ([("Content-Range", "bytes 7-3/2")], ""),
    ],
)
def test_a_length_that_is_a_lie_gives_the_right_bytes_or_one_sentence(
    index: ShardIndex, shards: Path, tmp_path: Path, headers: list[tuple[str, str]], words: str
) -> None:
    shard = index.shards[0]
    with lying((shards / shard.file).read_bytes()) as server:
        server.headers = [(name, value.replace("SIZE", str(shard.bytes))) for name, value in headers]
        said = fetched(tmp_path, server.place, index, **SLOW_STARTS)
    assert words in said and bool(words) == bool(said) and "\n" not in said
    assert said or (tmp_path / "cache" / f"{shard.sha256}.tar").read_bytes() == (shards / shard.file).read_bytes()


def test_a_redirect_that_leads_back_is_one_sentence(index: ShardIndex, tmp_path: Path) -> None:
    with lying(b"") as server:
        server.status, server.headers = 302, [("Location", f"{server.place}/again")]
        said = fetched(tmp_path, server.place, index)
    assert "the server answers 302" in said and "\n" not in said


@pytest.mark.parametrize("length", [True, False])
def test_an_index_is_stopped_at_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bool) -> None:
    monkeypatch.setattr(places, "MOST_INDEX_BYTES", 100_000)
    with lying(b"[" * 100_001) as server:
        server.endless = not length
        server.headers = [("Content-Length", "100001")] if length else []
        config = data_config(Path("x"), cache=settings(tmp_path))
        config = config.__class__(**{**vars(config), "sources": (config.sources[0].__class__(server.place, 1.0),)})
        with pytest.raises(LocalError, match=r"the index cannot be fetched: it has .*100,00"):
            read_indices(config)
    assert list((tmp_path / "cache").iterdir()) == []


def raw_index(shards: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((shards / "index.json").read_text())
    return raw


HUGE = 10**30
BAD_SHARD = {
    "file": [5, None, [], "", "a/b.tar", "..", ".hidden.tar", "a\0.tar", "é.tar", "x" * 256, "a\n.tar", True],
    "split": ["dev", 5, None, ["train"], {"train": 1}],
    "bytes": [0, -1, True, 1.5, "1", None, 2**62, HUGE],
    "sha256": ["", "0" * 63, "0" * 65, "G" * 64, "../" + "0" * 61, 5, None],
}
BAD_CHUNK = {
    "key": [5, None, "", [], True],
    "shard": [-1, 99, True, "0", 0.0, None, HUGE],
    "offset": [-1, True, "0", 1.0, HUGE, None],
    "assembly": [5, "", None],
    "chromosome": [5, "", None, ["chrA"]],
    "start": [-1, "0", True, 0.5, None, HUGE],
    "end": [0, "9", True, None, 2**62, HUGE],
    "split": ["valid", "dev", 5, None],
    "soft_masked": [-0.1, 1.1, "0", None, True, HUGE],
    "n_fraction": [-0.1, 1.1, "0", None, True],
    "n_runs": [
        5,
        None,
        [[0]],
        [[0, 0]],
        [[-1, 2]],
        [[5, 3], [1, 2]],
        [[0, 3], [2, 3]],
        [[0, 10**9]],
        [[True, 1]],
        "ab",
    ],
    "unknown_runs": [5, None, [[1, "2"]], [[0.0, 1]], {"0": 1}],
}


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [("shards", field, value) for field, values in BAD_SHARD.items() for value in values]
    + [("chunks", field, value) for field, values in BAD_CHUNK.items() for value in values],
)
def test_a_value_of_an_index_that_cannot_be_is_refused(shards: Path, table: str, field: str, value: Any) -> None:
    raw = raw_index(shards)
    raw[table][0][field] = value
    with pytest.raises(UserError, match="where: not a readable index"):
        parse_index(json.dumps(raw).encode(), "where")


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["shards"].append({**raw["shards"][0]}),
        lambda raw: raw["chunks"][1].update(key=raw["chunks"][0]["key"]),
        lambda raw: raw["chunks"][1].update(offset=raw["chunks"][0]["offset"] + 1),
        lambda raw: raw["chunks"].reverse(),
        lambda raw: [shard.update(bytes=2**61) for shard in raw["shards"]],
        lambda raw: raw["chunks"][0].update(n_runs=[[0, 4]], unknown_runs=[[3, 2]]),
        lambda raw: raw.update(chunk_length=True),
        lambda raw: raw.update(chunk_length="64"),
        lambda raw: raw.update(assembly=None),
        lambda raw: raw.update(shards={}),
        lambda raw: raw.update(chunks={}),
        lambda raw: raw.update(shards="ab"),
        lambda raw: raw["chunks"][0].update(soft_masked=float("nan")),
        lambda raw: raw.update(assembly=float("inf")),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(shards: Path, change: Any) -> None:
    raw = raw_index(shards)
    change(raw)
    with pytest.raises(UserError, match="where: not a readable index"):
        parse_index(json.dumps(raw).encode(), "where")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":' * 100_000, b"\x1f\x8b\x08", b"9" * 5000, b"\xff\xfe[\x00]\x00"]
)
def test_text_that_is_no_index_is_one_sentence(text: bytes) -> None:
    with pytest.raises(UserError, match="where: not a readable index"):
        parse_index(text, "where")


def test_a_mutated_index_is_refused_or_holds_together(shards: Path) -> None:
    whole, rng = raw_index(shards), random.Random(SEED)
    values = [value for table in (BAD_SHARD, BAD_CHUNK) for many in table.values() for value in many]
    accepted = 0
    for number in range(MUTANTS):
        raw = copy.deepcopy(whole)
        place: Any = raw[rng.choice(("shards", "chunks"))]
        place = rng.choice(place)
        place[rng.choice(list(place))] = rng.choice([*values, rng.randrange(2**40), rng.random()])
        text = bytearray(json.dumps(raw).encode())
        for _ in range(rng.choice((0, 0, 1))):
            text[rng.randrange(len(text))] = rng.randrange(256)
        try:
            index = parse_index(bytes(text), "where")
        except UserError:
            continue
        accepted += 1
        for chunk in index.chunks:
            shard = index.shards[chunk.shard]
            assert 0 <= chunk.offset < chunk.offset + chunk.length <= shard.bytes and shard.split == chunk.split, number
        assert parse_index(index.to_json().encode(), "where") == index, number
    assert 0 < accepted < MUTANTS // 2


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "huge"])
def test_what_stands_where_the_index_belongs_does_not_hang(shards: Path, tmp_path: Path, kind: str) -> None:
    directory = Path(shutil.copytree(shards, tmp_path / "copy"))
    path = directory / "index.json"
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**31)
    with pytest.raises(UserError, match=r"found no index.json|wanted at most 1,073,741,824"):
        read_index(directory)


def test_a_name_that_is_too_long_for_a_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        read_index(tmp_path / ("x" * 300))


def test_an_id_that_is_no_token_names_the_shard_and_the_byte(shards: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(shards, tmp_path / "copy"))
    chunk = next(chunk for chunk in read_index(directory).chunks if chunk.split == "train" and chunk.shard == 1)
    file = directory / read_index(directory).shards[1].file
    data = bytearray(file.read_bytes())
    data[chunk.offset + 5] = 200
    data[chunk.offset + 3] = 15
    file.write_bytes(data)
    track = Track(directory, "train", ())
    with pytest.raises(
        LocalError, match=rf"{file}: found the token 200 at byte {chunk.offset + 5}, wanted ids below 16"
    ):
        track.read(0, track.length)
    start = int(track.chunk_starts[track.chunks.index(chunk)])
    assert np.array_equal(track.read(start, 4)[3:], [15])
