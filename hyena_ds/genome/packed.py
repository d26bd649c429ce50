"""Opens a FASTA or a BED, plain or packed, as a stream that is looked at while it comes.

    FILE --regular, and of a kind we read--> gzip or plain --> blocks, none of them kept

Nothing here trusts what a file says of its own length.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from tqdm import tqdm

from hyena_ds.errors import UserError

COPY_BYTES = 1 << 22
_GZIP = b"\x1f\x8b"
_OTHER_KINDS = {
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x04\x22\x4d\x18": "an lz4 archive",
    b"\x43\x27\x41\x1a": "a 2bit file",
    b"\x1a\x41\x27\x43": "a 2bit file",
    b"\xff\xfe": "binary data (UTF-16 text)",
    b"\xfe\xff": "binary data (UTF-16 text)",
}
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file; without it the file was cut at the border of a block."""


def check_file(path: Path, what: str, missing: str) -> None:
    """Raise UserError unless `path` is a regular file that can be opened; `missing` says what to do where none is there.

    A pipe would be read once and then be empty, and a device may have no end.
    """
    with readable(path, what, missing):
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a directory says so itself
            raise UserError(f"{path}: found a pipe, a socket or a device, wanted a regular file as {what}")
        path.open("rb").close()


@contextmanager
def readable(path: Path, what: str, missing: str) -> Iterator[None]:
    """Whatever may go wrong with reading `path`, packed or not, as one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such {'file' if what == 'FASTA' else what}; {missing}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = str(error).rstrip(".")
        raise UserError(f"{path}: the gzip stream is cut short or damaged ({problem}); fetch the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror}); name a readable file") from None


def blocks(path: Path, what: str, missing: str, progress: bool = False) -> Generator[bytes, None, None]:
    """The bytes of a file in pieces of COPY_BYTES at most, unpacked where it is gzip or bgzip, with a bar if so.

    Raises UserError where the file is missing, unreadable, damaged, or of a kind that we do not read.
    """
    check_file(path, what, missing)
    with readable(path, what, missing), path.open("rb") as file:
        size = path.stat().st_size
        stream = _unpacked(file, path, what)
        with tqdm(total=size, unit="B", unit_scale=True, desc="unpack", disable=not progress or stream is file) as bar:
            while block := stream.read(COPY_BYTES):
                yield block
                bar.update(min(file.tell(), size) - bar.n)


def is_packed(path: Path) -> bool:
    """Whether a file that can be read is gzip or bgzip."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def _unpacked(file: BinaryIO, path: Path, what: str) -> BinaryIO:
    magic = file.read(18)
    file.seek(0)
    if magic.startswith(_GZIP):
        if magic[12:14] == b"BC":
            _check_bgzip(file, path)
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    kinds = [kind for begin, kind in _OTHER_KINDS.items() if magic.startswith(begin)]
    kinds += ["a bzip2 archive"] if _BZIP2.match(magic) else []
    if kinds:
        raise UserError(f"{path}: found {kinds[0]}, wanted a {what} as plain text or gzip; convert it first")
    return file


def _check_bgzip(file: BinaryIO, path: Path) -> None:
    file.seek(-min(len(_BGZF_END), path.stat().st_size), os.SEEK_END)
    if file.read() != _BGZF_END:
        raise UserError(f"{path}: the bgzip file has no end block, so it was cut short; fetch the file again")
    file.seek(0)
