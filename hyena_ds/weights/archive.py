"""The tensors of a file that torch.save wrote, without torch.load: nothing in it is run, and nothing is unpacked to a disk.

    weights.ckpt (zip) --data.pkl--> read_pickle --state_dict--> {key: ArchiveTensor} --load--> its own bytes, one tensor

Members are stored as they are in such a file: a packed one is refused, so that nothing grows on being read.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.weights.pickle_values import Refused, StoredTensor
from hyena_ds.weights.pickles import read_pickle

MOST_PICKLE = 32 << 20
"""Bytes of the pickle in an archive; the numbers are in files beside it."""
MOST_DIRECTORY = 1 << 20
"""Bytes of an archive's list of its members: some ten thousand of them. It is read again with every tensor."""
ZIP = b"PK\x03\x04"
OLD = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a pickle begins that is no archive: torch.save before 1.6, or anybody's."""
_KINDS = {
    "FloatStorage": ("F32", torch.float32),
    "DoubleStorage": ("F64", torch.float64),
    "HalfStorage": ("F16", torch.float16),
    "BFloat16Storage": ("BF16", torch.bfloat16),
    "LongStorage": ("I64", torch.int64),
    "IntStorage": ("I32", torch.int32),
    "ShortStorage": ("I16", torch.int16),
    "CharStorage": ("I8", torch.int8),
    "ByteStorage": ("U8", torch.uint8),
    "BoolStorage": ("BOOL", torch.bool),
}
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"


@dataclass(frozen=True)
class ArchiveTensor:
    """A tensor of an archive, read when it is asked for."""

    path: Path
    member: str
    """The storage's file within the archive."""
    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.shape

    @property
    def dtype(self) -> str:
        """Its numbers' type, as safetensors calls them."""
        return _KINDS[self.stored.storage.kind][0]

    def load(self) -> Tensor:
        """The tensor. Raises UserError where its file is missing, packed, damaged or of another size."""
        stored = self.stored
        dtype = _KINDS[stored.storage.kind][1]
        size = stored.storage.numbers * dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive:
                raw = bytearray(_member(archive, self.member, size, size))
        except _DAMAGE as error:
            raise _unreadable(self.path, error) from None
        if not size:
            return torch.empty(stored.shape, dtype=dtype)
        flat = torch.frombuffer(raw, dtype=dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()


def open_archive(path: Path) -> dict[str, ArchiveTensor]:
    """The tensors of a checkpoint's `state_dict`, or of a file that is one, by their keys. None is read yet.

    Raises UserError where the file is damaged, goes beyond a bound, or names what no weights need.
    """
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            _check_names(archive)
            if len(pickles) != 1:
                raise Refused(f"has {len(pickles)} members named data.pkl, wanted 1")
            prefix = pickles[0].removesuffix("data.pkl")
            if f"{prefix}byteorder" in archive.namelist() and _member(archive, f"{prefix}byteorder", 16) != b"little":
                raise Refused("was written on a big-endian machine")
            content = read_pickle(_member(archive, pickles[0], MOST_PICKLE))
    except _DAMAGE as error:
        raise _unreadable(path, error) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = {key: value for key, value in state.items() if _is_ours(key, value)} if isinstance(state, dict) else {}
    if not tensors:
        raise UserError(f"{path}: found no tensors in it; wanted a state_dict, or a checkpoint that has one")
    return {key: ArchiveTensor(path, f"{prefix}data/{value.storage.key}", value) for key, value in tensors.items()}


_DAMAGE = (zipfile.BadZipFile, Refused, OSError, struct.error, NotImplementedError, RuntimeError, ValueError, EOFError)


def _unreadable(path: Path, error: Exception) -> UserError:
    problem = in_one_line(str(error), MOST_QUOTED).rstrip(".")
    if isinstance(error, Refused):
        return UserError(f"{path}: {problem}; wanted weights that torch.save wrote: take them from their publisher")
    return UserError(f"{path}: the archive is damaged ({problem}); fetch the file again")


def _is_ours(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, StoredTensor) and value.storage.kind in _KINDS


def _member(archive: zipfile.ZipFile, name: str, most: int, wanted: int | None = None) -> bytes:
    """The bytes of a member. Raises Refused where it is missing, packed, or not of the wanted size."""
    shown = in_one_line(name, MOST_QUOTED)
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise Refused(f"lacks its member '{shown}'") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Refused(f"has its member '{shown}' packed, where torch.save stores it as it is")
    if info.file_size > most or (wanted is not None and info.file_size != wanted):
        bound = f"at most {most:,}" if wanted is None else f"{wanted:,}"
        raise Refused(f"has {info.file_size:,} bytes in its member '{shown}', wanted {bound}")
    with archive.open(info) as file:
        content = file.read(most + 1)
    if len(content) != info.file_size:
        raise Refused(f"has {len(content):,} bytes in its member '{shown}', wanted the {info.file_size:,} that it says")
    return content


def _check_names(archive: zipfile.ZipFile) -> None:
    """Refuse names that would lead out of a directory: nothing here unpacks them, but somebody may."""
    for name in archive.namelist():
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise Refused(f"has a member '{in_one_line(name, MOST_QUOTED)}', a path out of the archive")


def _check_directory(path: Path) -> None:
    """Refuse a list of members that is larger than any of weights: Python would read it whole."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16) - 200))
        tail = file.read()
    sizes: list[int] = []
    if (at := tail.rfind(_END)) >= 0:
        sizes += struct.unpack_from("<I", tail, at + 12)
    if (at := tail.rfind(_END64)) >= 0:
        sizes = [size for size in sizes if size != 0xFFFFFFFF] + [*struct.unpack_from("<Q", tail, at + 40)]
    if not sizes:
        raise zipfile.BadZipFile("its end is missing")
    if max(sizes) > MOST_DIRECTORY:
        raise Refused(f"lists its members in {max(sizes):,} bytes, wanted at most {MOST_DIRECTORY:,}")
