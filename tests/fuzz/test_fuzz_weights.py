"""Files of weights from strangers: shown as what they are or refused, and nothing else happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import strategies as st

from tests.fuzz.harness import accepted, fuzzed, run
from tests.weights import layouts

_MAKERS = {
    "weights.ckpt": layouts.lightning_folder,
    "model.safetensors": layouts.hf_safetensors,
    "pytorch_model.bin": layouts.hf_bin,
}


@cache
def good(name: str) -> tuple[bytes, str]:
    """(a file of weights, its config.json)."""
    with TemporaryDirectory() as directory:
        folder = _MAKERS[name](Path(directory), "d32_l2")
        return (folder / name).read_bytes(), (folder / "config.json").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "of a stranger"
    place.mkdir()
    yield place
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.name], "something was written beside it"


def put(folder: Path, name: str, content: bytes, config: str) -> str:
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(content)
    (folder / "config.json").write_text(config)
    return str(folder)


_EDIT = st.tuples(
    st.sampled_from(["any", "head", "tail"]),
    st.integers(0, 2**20),
    st.integers(0, 4),
    st.binary(max_size=4) | st.sampled_from([b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x93", b"R", b".", b"\xff" * 8]),
)


@fuzzed(st.sampled_from([*_MAKERS]), st.lists(_EDIT, min_size=1, max_size=4), st.none() | st.integers(0, 2**20))
def test_a_file_with_other_bytes_is_shown_or_refused(
    folder: Path, name: str, edits: list[tuple[str, int, int, bytes]], end: int | None
) -> None:
    whole, config = good(name)
    content = bytearray(whole)
    for where, at, length, new in edits:
        reach = len(content) if where == "any" else min(len(content), 20_000)
        place = at % max(1, reach)
        place = len(content) - reach + place if where == "tail" else place
        content[place : place + length] = new
    cut = len(content) if end is None else end % (len(content) + 1)
    shown = run("weights", "show", put(folder, name, bytes(content[:cut]), config), "--shift", "0.05")
    assert shown.code in (0, 2), shown.error


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
_NAMES = st.sampled_from(["layer", "l_max", "d_model", "n_layer", "max_seq_len", "hyena_order", "shift", "modulate"])


@fuzzed(st.sampled_from([*_MAKERS]), st.dictionaries(_NAMES, _VALUES, max_size=4), st.booleans())
def test_a_config_that_says_anything_is_taken_or_refused(
    folder: Path, name: str, change: dict[str, object], inside: bool
) -> None:
    content, text = good(name)
    config = json.loads(text)
    (config.setdefault("layer", {}) if inside else config).update(change)
    shown = run("weights", "show", put(folder, name, content, json.dumps(config)), "--shift", "0.05")
    assert shown.code in (0, 2), shown.error


@fuzzed(st.binary(max_size=200), share=0.5)
def test_a_file_of_anything_is_refused(folder: Path, content: bytes) -> None:
    for name in _MAKERS:
        assert run("weights", "show", put(folder, name, content, "{}"), "--shift", "0").code == 2


@pytest.mark.parametrize("name", _MAKERS)
def test_the_files_that_are_changed_are_good_ones(folder: Path, name: str) -> None:
    assert "width            32" in accepted("weights", "show", put(folder, name, *good(name)), "--shift", "0.05").out
