"""A checkpoint from a stranger: nothing in it runs, whatever it names, and nothing grows on being read."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyena_ds
from hyena_ds.errors import MOST_CHARACTERS, UserError
from hyena_ds.weights.archive import open_archive
from hyena_ds.weights.pickle_values import KNOWN, Name, Refused
from hyena_ds.weights.pickles import read_pickle
from tests.memory import grows_less_than
from tests.weights import layouts

SEED = int(os.environ.get("HYENA_FUZZ_SEED", "20261124"))
MUTANTS = 300
MIB, SECONDS = 500, 30.0


def archive(file: Path, content: bytes, prefix: str = "archive", **members: bytes) -> Path:
    """What torch.save writes, round any pickle."""
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(f"{prefix}/data.pkl", content)
        for name, data in members.items():
            zipped.writestr(f"{prefix}/{name.replace('__', '/')}", data)
    return file


def problem(path: Path) -> str:
    """What is said of a file, within bounds of memory and time."""
    began = time.process_time()
    with grows_less_than(MIB), pytest.raises(UserError) as caught:
        hyena_ds.load_model(path, shift=0.0)
    said = str(caught.value)
    assert said.startswith(str(path)) and said.isprintable() and len(said) <= MOST_CHARACTERS
    assert time.process_time() - began < SECONDS
    return said


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file `canary` when they are opened by Python's own unpickler, and the name that betrays each."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    shell = Calls(os.system, touch)
    layered = Calls(eval, code)
    nested: Any = {"state_dict": OrderedDict(w=[(OrderedDict(x=shell), 1)]), "hyper_parameters": {"a": [layered]}}
    return {
        "os.system": (pickle.dumps(shell, 2), "posix.system"),
        "os.system, protocol 0": (pickle.dumps(shell, 0), "posix.system"),
        "os.system, protocol 5": (pickle.dumps({"state_dict": shell}, 5), "posix.system"),
        "builtins.eval": (pickle.dumps({"state_dict": {"k": layered}}, 2), "__builtin__.eval"),
        "builtins.exec": (pickle.dumps(Calls(exec, code), 4), "builtins.exec"),
        "nested in values": (pickle.dumps(nested, 2), "posix.system"),
        "call of a call": (pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"), 4), "builtins."),
        "INST": (b"(S'" + touch.encode() + b"'\nios\nsystem\n.", "os.system"),
        "OBJ": (b"(cos\nsystem\nS'" + touch.encode() + b"'\no.", "os.system"),
        "STACK_GLOBAL": (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch.encode() + b"\x85R.",
            "os.system",
        ),
        "behind the end of another": (pickle.dumps({}, 2)[:-1] + b"0" + pickle.dumps(shell, 2)[2:], "posix.system"),
    }


NAMES = list(attacks(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_a_pickle_is_named_and_not_made(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, betrayed = attacks(canary)[name]
    for file in (tmp_path / "weights.ckpt", tmp_path / "pytorch_model.bin"):
        said = problem(archive(file, content))
        assert f"names '{betrayed}" in said and "it would run when it is opened by other programs" in said
        assert not canary.exists()
        file.unlink()
    try:
        pickle.loads(content)
    except Exception as error:
        assert name == "call of a call", error
    assert canary.exists() or name == "call of a call", "the attack does nothing: the test shows nothing"


@pytest.mark.parametrize("name", NAMES)
def test_fickling_finds_the_same_pickles_malicious(name: str, tmp_path: Path) -> None:
    content, _ = attacks(tmp_path / "canary")[name]
    severity, severities, _ = fickling_says(content)
    assert severity >= severities.LIKELY_OVERTLY_MALICIOUS
    with pytest.raises(Refused):
        read_pickle(content)


@pytest.mark.parametrize(("make", "worst"), [(layouts.hf_bin, "LIKELY_UNSAFE"), (layouts.lightning_folder, None)])
def test_fickling_finds_no_name_in_what_is_loaded_that_is_not_in_the_table(
    make: Callable[[Path, str], Path], worst: str | None, tmp_path: Path
) -> None:
    """How bad it finds them says little: torch's own names are unsafe to it, and Lightning's callbacks are malicious."""
    file = next(path for path in make(tmp_path, "d32_l2").iterdir() if zipfile.is_zipfile(path))
    with zipfile.ZipFile(file) as zipped:
        content = zipped.read(next(name for name in zipped.namelist() if name.endswith("data.pkl")))
    severity, severities, names = fickling_says(content)
    assert names and names <= KNOWN
    assert worst is None or severity <= severities[worst]
    assert read_pickle(content)


def fickling_says(content: bytes) -> tuple[Any, Any, set[Name]]:
    """(how bad a pickle is, the scale, what it imports), by fickling."""
    pytest.importorskip("fickling", reason="found no fickling; pip install -e '.[dev]' installs it")
    from fickling.analysis import Severity, check_safety
    from fickling.fickle import Pickled

    pickled = Pickled.load(io.BytesIO(content))
    names = {Name(line.module, alias.name) for line in pickled.properties.imports for alias in line.names}
    return check_safety(pickled).severity, Severity, names


def deep_tuple(count: int) -> bytes:
    return b")" + b"\x85" * count + b"."


def deep_list(count: int) -> bytes:
    return b"]" * count + b"a" * (count - 1) + b"."


def tensor(count: int = 4, shape: str = "(I4\nt", stride: str = "(I1\nt", offset: int = 0, key: str = "0") -> bytes:
    """A state_dict of one tensor."""
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'%s'\nS'cpu'\nI%d\ntQ" % (key.encode(), count)
    built = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + shape.encode() + stride.encode()
    return b"(S'w'\n" + built + b"I00\nNtRd."


LONG = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02]r\xff\xff\xff\xff.", "found no tensors in it"),
        (
            b"]" + b"".join(b"r" + struct.pack("<I", number) for number in range(500_001)) + b".",
            "remembers more than 500,000",
        ),
        (b"]" + b"K\x00a" * 600_000 + b".", "takes more than 1,000,000 steps"),
        (b"N" * 20_001 + b".", "puts more than 20,000 values on its stack"),
        (b"(" * 101 + b".", "nests deeper than 100"),
        (deep_tuple(101), "nests deeper than 100"),
        (deep_tuple(900_000), "nests deeper than 100"),
        (deep_list(102), "nests deeper than 100"),
        (b"]q\x00" + b"h\x00h\x00a" * 200 + b".", "nests deeper than 100"),
        (b"}" + LONG + b"Ns.", "holds a number of more than 64 bits"),
        (b"}" + b"L" + b"9" * 100 + b"L\nNs.", "holds a number of more than 64 bits"),
        (b"}I" + b"9" * 10_000 + b"\nNs.", "is no whole pickle"),
        (b"}(K\x01t" + b"Ns.", "has a key that is no text, number or name"),
        (b"}]Ns.", "has a key that is no text, number or name"),
        (b"\x80\x09}.", "is of protocol 9, wanted at most 5"),
        (b"\x82\x01.", "holds the opcode EXT1"),
        (b"Psomewhere\n.", "holds the opcode PERSID"),
        (b"\x97.", "holds the opcode NEXT_BUFFER"),
        (b"]Q.", "refers to what is no storage"),
        (b"(S'storage'\nctorch\nSize\nS'0'\nS'cpu'\nI4\ntQ.", "refers to a storage of an unknown kind"),
        (b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI-4\ntQ.", "refers to a storage of an unknown kind"),
        (b"NN\x85R.", "calls what is no name"),
        (b"ctorch._utils\n_rebuild_parameter\n(NtR.", "makes a parameter of what is no tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "describes a tensor that cannot be"),
        (tensor(shape="(I5\nt"), "has a tensor of 5 numbers beyond the 4 of its storage"),
        (tensor(offset=1), "has a tensor of 4 numbers beyond the 4 of its storage"),
        (tensor(shape="(I1000000000\nt", stride="(I0\nt"), "has a tensor of 1,000,000,000 numbers beyond"),
        (tensor(shape="(I-1\nt"), "describes a tensor that cannot be"),
        (tensor(shape="(I4\nI1\nt"), "describes a tensor that cannot be"),
        (tensor(shape="(" + "I1\n" * 9 + "t", stride="(" + "I1\n" * 9 + "t"), "describes a tensor that cannot be"),
        (tensor(shape="(F4.0\nt"), "describes a tensor that cannot be"),
        (b"h\x07.", "it recalls value 7, which it has not remembered"),
        (b"0.", "it closes what was not opened"),
        (b"R.", "it takes more than it has put down"),
        (b"2.", "it looks at a value that is not there"),
        (b"NN.", "values are left over at its end"),
        (b"(.", "is no whole pickle"),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "sets items of what is no dict"),
        (b"(K\x01d.", "is no whole pickle"),
        (b"\x8c\x02\xff\xfe.", "is no whole pickle"),
        (b"", "is no whole pickle"),
        (b"\xff\xfe", "is no whole pickle"),
        (pickle.dumps([1, 2]), "found no tensors in it"),
        (pickle.dumps({"state_dict": {"w": 1}}), "found no tensors in it"),
    ],
    ids=range(45),
)
def test_a_pickle_that_is_none_of_weights_says_why(content: bytes, said: str, tmp_path: Path) -> None:
    assert said in problem(archive(tmp_path / "weights.ckpt", content))


def test_a_checkpoint_cut_at_any_length_is_named(tmp_path: Path) -> None:
    layouts.bare_checkpoint(tmp_path, "d32_l2")
    whole = (tmp_path / "weights.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    for number in range(25):
        cut.write_bytes(whole[: 4 + number * (len(whole) - 4) // 25])
        problem(cut)
    with zipfile.ZipFile(tmp_path / "weights.ckpt") as zipped:
        content = zipped.read(next(name for name in zipped.namelist() if name.endswith("data.pkl")))
    for number in range(50):
        with pytest.raises(Refused):
            read_pickle(content[: number * len(content) // 50])


def rewritten(tmp_path: Path, change: Callable[[str, bytes], tuple[str, bytes, int] | None]) -> Path:
    """A good checkpoint with other members."""
    layouts.bare_checkpoint(tmp_path, "d32_l2")
    file = tmp_path / "changed.ckpt"
    with zipfile.ZipFile(tmp_path / "weights.ckpt") as good, zipfile.ZipFile(file, "w") as bad:
        for name in good.namelist():
            new = change(name, good.read(name))
            if new is not None:
                bad.writestr(new[0], new[1], compress_type=new[2])
    return file


STORED, PACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda n, d: (n, b"\0" * (1 << 30) if n.endswith("data.pkl") else d, PACKED),
            "packed, where torch.save stores it",
        ),
        (
            lambda n, d: (
                n,
                b"\0" * (1 << 29) if n.endswith("data/0") else d,
                PACKED if n.endswith("data/0") else STORED,
            ),
            "packed",
        ),
        (lambda n, d: (n, b"N" * (33 << 20) if n.endswith("data.pkl") else d, STORED), "wanted at most 33,554,432"),
        (lambda n, d: (n, d[:-1] if n.endswith("data/0") else d, STORED), "bytes in its member"),
        (lambda n, d: None if n.endswith("data/0") else (n, d, STORED), "lacks its member"),
        (lambda n, d: None if n.endswith("data.pkl") else (n, d, STORED), "has 0 members named data.pkl, wanted 1"),
        (lambda n, d: (n.replace("version", "../../../evil"), d, STORED), "a path out of the archive"),
        (lambda n, d: ("/etc/evil" if n.endswith("/version") else n, d, STORED), "a path out of the archive"),
        (lambda n, d: ("other/data.pkl" if n.endswith("/version") else n, d, STORED), "has 2 members named data.pkl"),
        (lambda n, d: (n, b"big" if n.endswith("byteorder") else d, STORED), "was written on a big-endian machine"),
    ],
    ids=range(10),
)
def test_an_archive_that_is_not_torch_s_says_why(change: Any, said: str, tmp_path: Path) -> None:
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    assert said in problem(rewritten(tmp_path, change))
    assert before == {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}


def test_an_archive_of_countless_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "weights.ckpt"
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 60_000, 60_000, 100 << 20, 4, 0)
    with file.open("wb") as content:
        content.write(b"PK\x03\x04")
        content.seek(100 << 20)
        content.write(end)
    assert "lists its members in 104,857,600 bytes, wanted at most 1,048,576" in problem(file)


def test_a_bare_pickle_is_refused_unread(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "weights.ckpt"
    file.write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}"), 4))
    assert "found a bare pickle, wanted safetensors or an archive of torch.save" in problem(file)
    torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    assert "found a bare pickle" in problem(file)
    assert not canary.exists()


def test_tensors_of_odd_strides_are_as_torch_has_them(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {
        "turned": base.t(),
        "part": base[1:3, 2:5],
        "spread": base[::2],
        "half": base.half(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[:, 1]),
        "bits": base.bfloat16(),
    }
    torch.save(state, tmp_path / "weights.ckpt")
    found = open_archive(tmp_path / "weights.ckpt")
    assert set(found) == set(state)
    for name, wanted in state.items():
        loaded = found[name].load()
        assert loaded.dtype == wanted.dtype and torch.equal(loaded, wanted.detach()), name
        assert found[name].shape == tuple(wanted.shape)


def test_mutants_of_a_checkpoint_are_refused_or_load_as_what_they_were(tmp_path: Path) -> None:
    """Bytes of the pickle are changed by chance. `HYENA_FUZZ_SEED` repeats a failure."""
    layouts.bare_checkpoint(tmp_path, "d32_l2")
    with zipfile.ZipFile(tmp_path / "weights.ckpt") as zipped:
        content = zipped.read(next(name for name in zipped.namelist() if name.endswith("data.pkl")))
    good, loaded = read_pickle(content)["state_dict"], 0
    began = time.process_time()
    for number in range(MUTANTS):
        rng = random.Random(f"{SEED} {number}")
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(len(changed))
            changed[at : at + rng.choice([0, 1, 1, 4])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        try:
            found = read_pickle(bytes(changed))
        except Refused as error:
            assert str(error), (SEED, number)
            continue
        except BaseException as error:
            pytest.fail(f"seed {SEED}, mutant {number}: {error!r}")
        loaded += isinstance(found, dict) and found.get("state_dict") == good
    assert 0 < loaded < MUTANTS
    assert time.process_time() - began < 4 * SECONDS
