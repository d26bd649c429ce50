"""Fetches a published assembly over HTTP: resumes, checks, and appears under its name only when it is whole.

    md5sum.txt beside the file --> wanted MD5
    URL --Range requests, pauses that grow between attempts--> FILE.part --MD5 agrees--> FILE

FILE.part stays after an interruption, and the same command goes on from its end.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.config import DEFAULT_GIB, DownloadConfig, PrepConfig
from hyena_ds.data.remote.transfer import COPY_BYTES, Broken, Refused, append, open_http
from hyena_ds.errors import UserError

T = TypeVar("T")
GENOMES = "https://hgdownload.soe.ucsc.edu/goldenPath"
ASSEMBLIES = {
    "hg38": f"{GENOMES}/hg38/bigZips/hg38.fa.gz",
    "hs1": f"{GENOMES}/hs1/bigZips/hs1.fa.gz",
}
"""UCSC's hg38, and T2T-CHM13 v2.0, which UCSC calls hs1."""
LONGEST_PAUSE = 60.0
MOST_LIST_BYTES = 2**24
"""The most bytes that a list of checksums may have."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 8
    """Attempts in a row that bring no byte."""
    first_pause: float = 1.0
    """Seconds; doubles with every attempt in a row."""
    sleep: Callable[[float], None] = time.sleep


def download(config: PrepConfig, config_name: str) -> str:
    """Fetch what the config's key `download` names to where its key `fasta` says; returns what to tell the user."""
    wanted = config.download
    if wanted is None:
        raise UserError(f"{config_name}: found no key 'download', wanted for instance 'download: {{name: hg38}}'")
    url = wanted.url or ASSEMBLIES.get(wanted.name)
    if url is None:
        raise UserError(
            f"{config_name}: download.name: found '{wanted.name}', wanted {' or '.join(ASSEMBLIES)}; "
            "or give its address as 'download.url'"
        )
    return fetch(url, wanted.checksums, Path(config.fasta), _patience(wanted), int(wanted.gib * 2**30))


def _patience(config: DownloadConfig) -> Patience:
    return Patience(config.attempts, config.first_pause)


def download_named(name: str, directory: Path) -> str:
    """Fetch a named assembly into a directory."""
    url = ASSEMBLIES[name]
    return fetch(url, None, directory / _file_name(url), Patience())


def fetch(
    url: str, checksums: str | None, destination: Path, patience: Patience, most: int = int(DEFAULT_GIB * 2**30)
) -> str:
    """Bring `url` to `destination`, checked by the MD5 that the list at `checksums` has for its file name.

    UserError when the address does not exist, the list lacks the file, the sum is wrong twice, patience ends, or the
    file has more than `most` bytes.
    """
    listed = checksums or f"{url.rsplit('/', 1)[0]}/md5sum.txt"
    digest = _listed_digest(listed, _file_name(url), patience)
    part = destination.with_name(destination.name + ".part")
    try:
        for path in (destination, part):
            if path.exists() and not path.is_file():
                raise UserError(f"{path}: exists and is no file; move it away and try again")
        if destination.exists():
            if _md5(destination) == digest:
                return f"{destination} is there, with the MD5 of {listed}; nothing to do"
            raise UserError(
                f"{destination}: exists with another MD5 than {listed} has ({digest}); move it away and try again"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _fill(url, part, most, patience)
        if _md5(part) != digest and resumed:
            # The part may be of an older version of the file; without it the server decides every byte.
            part.unlink()
            _fill(url, part, most, patience)
        found = _md5(part)
        if found != digest:
            part.unlink()
            raise UserError(
                f"{url}: found MD5 {found}, wanted {digest} as {listed} says; nothing was kept, try again later"
            )
        os.replace(part, destination)
    except OSError as error:
        raise UserError(
            f"{part}: cannot write ({error.strerror}); make room or name another place, then try again"
        ) from None
    return f"{destination}: {destination.stat().st_size:,} bytes, MD5 {digest} as {listed} says"


def _file_name(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1]


def _listed_digest(listed: str, name: str, patience: Patience) -> str:
    text = _insistently(listed, patience, lambda: _read_all(listed)).decode("utf-8", "replace")
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].lstrip("*").rsplit("/", 1)[-1] == name and len(words[0]) == 32:
            return words[0].lower()
    raise UserError(f"{listed}: found no MD5 of {name}; give another list as 'download.checksums'")


def _read_all(url: str) -> bytes:
    answer = open_http(url, TIMEOUT)
    assert answer is not None  # only a request for what lies beyond the end has no answer
    body = b""
    try:
        while block := answer.read(COPY_BYTES):
            body += block
            if len(body) > MOST_LIST_BYTES:
                raise Refused(f"found more than {MOST_LIST_BYTES:,} bytes, wanted a list of MD5 sums")
    except (http.client.HTTPException, OSError) as error:
        raise Broken(str(error)) from None
    finally:
        answer.close()
    if answer.length is not None and len(body) < answer.length:
        raise Broken(f"the connection ended after {len(body)} of {answer.length} bytes")
    return body


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fill(url: str, part: Path, most: int, patience: Patience) -> None:
    """Bring `part` to the whole length of the file. UserError where it has more than `most` bytes, or the disk too few."""
    with tqdm(unit="B", unit_scale=True, desc=_file_name(url)) as bar:

        def arrived(have: int, whole: int | None) -> None:
            if whole is not None and bar.total != whole:
                free = shutil.disk_usage(part.parent).free
                if whole - have > free:
                    raise UserError(
                        f"{part}: {whole - have:,} bytes are to come, and the disk has room for {free:,}; make room, then "
                        "run the command again to resume"
                    )
            bar.total = whole
            bar.update(have - bar.n)

        # Patience is for attempts that bring nothing: each one that adds bytes starts the count again.
        while _insistently(url, patience, lambda: append(partial(open_http, url, TIMEOUT), part, most, arrived)):
            pass


def _insistently(url: str, patience: Patience, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, tried again after broken connections and passing answers."""
    for tried in range(1, patience.attempts + 1):
        try:
            return attempt()
        except Refused as error:
            raise UserError(
                f"{url}: {error}; correct the address, which begins with https://, or the bound 'download.gib'"
            ) from None
        except Broken as error:
            problem = str(error)
        if tried < patience.attempts:
            patience.sleep(min(patience.first_pause * 2 ** (tried - 1), LONGEST_PAUSE))
    raise UserError(f"{url}: no byte came in {patience.attempts} attempts ({problem}); run the command again to resume")
