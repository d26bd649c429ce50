"""A weights file that came from somebody: a right model or one sentence, and nothing is allocated on its header's word."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.errors import MOST_CHARACTERS, UserError
from hyena_ds.weights.reading import read_weights
from tests.memory import grows_less_than
from tests.paths import ROOT

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.weights.safetensors"))
SEED = int(os.environ.get("HYENA_FUZZ_SEED", "20261124"))
MUTANTS = 150
"""A file."""
SECONDS, MIB = 60.0, 300

Header = dict[str, Any]


def taken_apart(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def written(path: Path, header: Header | str | bytes, data: bytes, size: int | None = None) -> Path:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)
    return path


def problem(path: Path) -> str:
    began = time.process_time()
    with grows_less_than(MIB), pytest.raises(UserError) as caught:
        load_model(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and said.isprintable() and len(said) <= MOST_CHARACTERS
    assert time.process_time() - began < SECONDS
    return said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("d_model", "1000000000", "(d_model: found 1000000000, wanted at most 65,536"),
        ("d_model", "65536", "has shape"),
        ("d_model", "-32", "(d_model: found -32, wanted at least 1"),
        ("d_model", "True", "d_model: found 'True', wanted a whole number"),
        ("d_model", "३२", "d_model: found '३२', wanted a whole number"),
        ("d_model", "9" * 10_000, "d_model: found '999"),
        ("d_model", "a\nb\x1b[2J", "d_model: found 'a\\nb\\x1b[2J', wanted a whole number"),
        ("n_layer", "1000000", "(n_layer: found 1000000, wanted at most 10,000"),
        ("n_layer", "10000", "others); wanted a HyenaDNA of 10000 layers"),
        ("n_layer", "1", "found the unknown key 'backbone.layers.1."),
        ("n_layer", "0", "(n_layer: found 0, wanted at least 1"),
        ("d_inner", "65537", "(d_inner: found 65537"),
        ("l_max", "1000000000000000", "(l_max: found 1000000000000000, wanted at most 1,099,511,627,776"),
        ("l_max", "1e3", "l_max: found '1e3', wanted a whole number"),
        ("emb_dim", "65535", "has shape"),
        ("filter_order", "60000", "has shape"),
        ("w", "nan", "(w: found nan"),
        ("w", "inf", "(w: found inf"),
        ("w", "ten", "could not convert string to float"),
        ("shift", "-1e300", "(shift: found -1e+300"),
        ("extended_from", "1000", "extension: wanted extension and extended_from together"),
        ("extension", "x" * 10_000, "extension"),
    ],
)
def test_a_header_that_says_what_the_file_is_not_is_named(key: str, value: str, said: str, tmp_path: Path) -> None:
    header, data = taken_apart(GOLDEN[0])
    header["__metadata__"][key] = value
    assert said in problem(written(tmp_path / "weights.safetensors", header, data))


NORM = "backbone.ln_f.weight"
Change = Callable[[Header], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(__metadata__={"d_model": 32}),
        lambda h: h["__metadata__"].pop("d_model"),
        lambda h: h.pop(NORM),
        lambda h: h[NORM].update(dtype="I32"),
        lambda h: h[NORM].update(dtype="U32"),
        lambda h: h[NORM].update(dtype="F99"),
        lambda h: h[NORM].update(shape=[-32]),
        lambda h: h[NORM].update(shape=[2**40, 2**40]),
        lambda h: h[NORM].update(shape=[16, 2]),
        lambda h: h[NORM].update(shape="32"),
        lambda h: h[NORM].update(data_offsets=[0, 2**62]),
        lambda h: h[NORM].update(data_offsets=[0, 128]),
        lambda h: h[NORM].update(data_offsets=[128, 0]),
        lambda h: h[NORM].update(data_offsets=[True, None]),
        lambda h: h.update({NORM.replace("ln_f", "layers.7.norm1"): h.pop(NORM)}),
        lambda h: h.update(
            {key.replace("layers.1.", "layers.2."): h.pop(key) for key in list(h) if "layers.1." in key}
        ),
    ],
    ids=range(16),
)
def test_tensors_that_are_not_the_header_s_are_named(change: Change, tmp_path: Path) -> None:
    header, data = taken_apart(GOLDEN[0])
    change(header)
    problem(written(tmp_path / "weights.safetensors", header, data))


def test_files_that_are_no_safetensors_are_named(tmp_path: Path) -> None:
    header, data = taken_apart(GOLDEN[0])
    file, text = tmp_path / "weights.safetensors", json.dumps(header)
    for content in (
        "",
        "[]",
        "1",
        "null",
        text[:-1],
        text + text,
        "[" * 100_000,
        '{"a":' * 50_000,
        b"\xff\xfe" + text.encode(),
    ):
        problem(written(file, content, data))
    for size in (0, 7, 2**31, 2**60, 2**64 - 1):
        problem(written(file, header, data, size))
    twice = text[:-1] + f', "{NORM}": ' + json.dumps({**header[NORM], "dtype": "I32"}) + "}"
    problem(written(file, twice, data))
    for raw in (b"", b"\0" * 4, b"\0" * 8, b"\xff" * 4096):
        file.write_bytes(raw)
        problem(file)
    os.mkfifo(tmp_path / "pipe")
    assert all("name a weights file" in problem(path) for path in (tmp_path / "pipe", tmp_path / "absent"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_mutants_of_a_file_are_refused_or_load_as_what_they_say(path: Path, tmp_path: Path) -> None:
    """Bytes, numbers of the header, keys and lengths are changed by chance. `HYENA_FUZZ_SEED` repeats a failure."""
    header, data = taken_apart(path)
    content, loaded = path.read_bytes(), 0
    whole, file = read_weights(path, shift=0.05), tmp_path / "weights.safetensors"
    for number in range(MUTANTS):
        rng = random.Random(f"{SEED} {path.name} {number}")
        if number % 3 == 0:
            _mutate_bytes(rng, file, content)
        else:
            written(file, _mutated(rng, header), data[: rng.choice([None, None, None, len(data) // 2])])
        try:
            found = read_weights(file, shift=0.05)
        except UserError as error:
            said = str(error)
            assert said.startswith(str(file)) and said.isprintable() and len(said) <= MOST_CHARACTERS, (SEED, number)
            continue
        except BaseException as error:
            pytest.fail(f"seed {SEED}, mutant {number}: {error!r}")
        loaded += 1
        assert {name: tensor.shape for name, tensor in found.parameters.items()} == {
            name: tensor.shape for name, tensor in whole.parameters.items()
        }, (SEED, number)
        assert found.config.width == whole.config.width
        assert all(tensor.dtype == torch.float32 for tensor in found.parameters.values())
    assert 0 < loaded < MUTANTS


def _mutate_bytes(rng: random.Random, file: Path, content: bytes) -> None:
    """A few bytes, most of them in the header; or an end too early."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(rng.choice([8, 200, 6000, len(content)]))
        changed[at] = rng.choice([0, 0xFF, ord("9"), ord("{"), ord('"'), rng.randrange(256)])
    file.write_bytes(changed[: rng.choice([None, None, None, rng.randrange(len(content))])])


def _mutated(rng: random.Random, header: Header) -> Header:
    """The header with another value, key, shape, type or place of some of its entries."""
    new: Header = json.loads(json.dumps(header))
    for _ in range(rng.choice([1, 1, 3])):
        odd = rng.choice(["0", "-1", "1e9", "nan", "", "9" * 30, "32", "2", str(10**9), "²", None, True, 5, [], {}])
        meta, key = new.get("__metadata__"), rng.choice(list(new))
        kind = rng.randrange(5)
        if kind == 0 and isinstance(meta, dict):
            meta[rng.choice([*header["__metadata__"], "shift", "extension", "extended_from"])] = odd
        elif kind == 1:
            new[rng.choice(["x", key + "x", key.replace("1", "2"), key.replace("0", "7")])] = new.pop(key)
        elif kind == 2 and isinstance(new[key], dict):
            new[key]["shape"] = rng.choice([[], [0], [1], [2**63], [odd], [32, 32], [-1], odd])
        elif kind == 3 and isinstance(new[key], dict):
            new[key]["dtype"] = rng.choice(["F64", "F16", "I32", "BOOL", "U8", "F8_E4M3", "", odd])
        elif isinstance(new[key], dict):
            new[key]["data_offsets"] = [rng.choice([0, 4, 2**40, -1, odd]), rng.choice([0, 128, 2**62, odd])]
    return new


def test_a_model_loads_without_the_compiler_of_torch() -> None:
    code = f"import sys, hyena_ds; hyena_ds.load_model({str(GOLDEN[0])!r}); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
