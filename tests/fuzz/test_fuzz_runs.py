"""Damaged run directories: reading one says what is there, or in one sentence what is wrong; damage to a checkpoint is seen.

The run is a real one, trained once; every input is a copy with one file damaged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz.harness import fuzzed, run
from tests.training.runs import make_shards, train, write_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps on two ranks, with three checkpoints, and its shards beside it."""
    directory = tmp_path_factory.mktemp("fuzz")
    config = write_config(directory / "run.yaml", make_shards(directory), monitors={"csv": True})
    ended = train(config)
    assert ended.returncode == 0, ended.stderr
    return directory / "runs" / "run"


_STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("nan"),
    "",
    "x" * 5000,
    "\x00\x1b[2J",
    [],
    [[1]],
    {},
    {"a": {}},
]
_VALUES = st.sampled_from(_STRANGE)


def _bytes(data: bytes, at: float, what: bytes) -> bytes:
    """`what` written over `data`, from the fraction `at` on."""
    begin = int(at * len(data))
    return data[:begin] + what + data[begin + len(what) :]


def _values(data: bytes, at: float, value: Any) -> bytes:
    """One value of a JSON file, or of a line of a file of them, replaced; as it is where there is none."""
    whole = _replaced(data, at, value)
    if whole is not None:
        return whole
    lines = data.split(b"\n")
    number = int(at * len(lines))
    return b"\n".join([*lines[:number], _replaced(lines[number], at, value) or lines[number], *lines[number + 1 :]])


def _replaced(text: bytes, at: float, value: Any) -> bytes | None:
    try:
        tree = json.loads(text)
    except ValueError:
        return None
    places = [*_places(tree)]
    if not places:
        return json.dumps(value).encode()
    holder, key = places[int(at * len(places))]
    holder[key] = value
    return json.dumps(tree).encode()


def _places(node: Any) -> list[tuple[Any, Any]]:
    items = [*node.items()] if isinstance(node, dict) else [*enumerate(node)] if isinstance(node, list) else []
    return [place for key, child in items for place in [(node, key), *_places(child)]]


_AT = st.floats(0.0, 0.999999)
Damage = Callable[[bytes], bytes]
_DAMAGES: st.SearchStrategy[Damage] = st.one_of(
    st.tuples(_AT, st.binary(min_size=1, max_size=8)).map(lambda d: lambda data: _bytes(data, *d)),
    st.tuples(_AT, st.sampled_from([512, 4096])).map(lambda d: lambda data: _bytes(data, d[0], bytes(d[1]))),
    _AT.map(lambda at: lambda data: data[: int(at * len(data))]),
    st.tuples(_AT, _VALUES).map(lambda d: lambda data: _values(data, *d)),
    _VALUES.map(lambda value: lambda data: json.dumps(value).encode()),
    st.sampled_from([100, 100_000]).map(lambda depth: lambda data: data + b"[" * depth + b"\n"),
    st.just(lambda data: data.replace(b"\n", b"\r\n")),
    st.just(lambda data: data + data),
    st.just(lambda data: data.decode("latin-1").encode("utf-16")),
)
_STANDINS: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a directory": lambda path: path.mkdir(),
    "a link into nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
}


def copy_of(trained: Path, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    # Links: a damaged file is written anew, and a copy costs nothing.
    shutil.copytree(trained, directory, copy_function=os.link)
    return directory


def files_in(directory: Path) -> list[Path]:
    return sorted(
        p.relative_to(directory) for p in directory.rglob("*") if p.is_file() and "tensorboard" not in p.parts
    )


def read_all(damaged: Path, page: Path) -> int:
    """Run every command that reads a run; the exit code of `checkpoints --verify`."""
    for arguments in (
        ["report", str(damaged), "--output", str(page)],
        ["checkpoints", str(damaged)],
        ["data", "show", str(damaged), "--step", "3"],
    ):
        assert run(*arguments).code in (0, 1, 2)
    return run("checkpoints", str(damaged), "--verify").code


@fuzzed(_AT, _DAMAGES)
def test_a_damaged_file_is_read_or_named(trained: Path, tmp_path: Path, which: float, damage: Damage) -> None:
    damaged = copy_of(trained, tmp_path / "damaged")
    files = files_in(damaged)
    file = damaged / files[int(which * len(files))]
    before = file.read_bytes()
    after = damage(before)
    file.unlink()
    file.write_bytes(after)
    page = tmp_path / "page.html"
    page.unlink(missing_ok=True)
    code = read_all(damaged, page)
    in_checkpoint = file.parent.name.startswith("step-")
    assert code == (1 if in_checkpoint and after != before else 0)
    assert page.is_file() or file.name == "config.yaml"


@fuzzed(_AT, st.sampled_from([*_STANDINS]))
def test_something_else_in_the_place_of_a_file_is_read_or_named(
    trained: Path, tmp_path: Path, which: float, standin: str
) -> None:
    damaged = copy_of(trained, tmp_path / "damaged")
    entries = sorted(path for path in damaged.rglob("*") if "tensorboard" not in path.parts)
    entry = entries[int(which * len(entries))]
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _STANDINS[standin](entry)
    page = tmp_path / "page.html"
    page.unlink(missing_ok=True)
    code = read_all(damaged, page)
    assert code == 1 or not entry.parent.name.startswith("step-")
    assert page.is_file() or entry.name == "config.yaml"


_PATHS = st.one_of(
    st.sampled_from(
        ["/etc", "/dev/zero", "/dev/null", "/", ".", "", "\x00", "x" * 300, "x/" * 3000, "\udcff", "/etc/passwd/x"]
    ),
    st.text(max_size=20).map(lambda text: f"no-such-run/{text}"),
)


@fuzzed(_PATHS, st.sampled_from([["report"], ["checkpoints"], ["data", "show", "--step=1"]]))
def test_a_directory_that_is_no_run_is_refused(path: str, verb: list[str]) -> None:
    ended = run(*verb, "--", path)
    assert ended.code == 2 or (ended.code == 0 and "no checkpoints" in ended.out)
