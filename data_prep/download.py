"""Fetches a published assembly over HTTP: resumes, checks, and appears under its name only when it is whole.

    md5sum.txt beside the file --> wanted MD5
    URL --Range requests, pauses that grow between attempts--> FILE.part --MD5 agrees--> FILE

Only the standard library. FILE.part stays after an interruption, and the same command goes on from its end.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.config import DownloadConfig, PrepConfig
from hyena_ds.errors import UserError

GENOMES = "https://hgdownload.soe.ucsc.edu/goldenPath"
ASSEMBLIES = {
    "hg38": f"{GENOMES}/hg38/bigZips/hg38.fa.gz",
    "hs1": f"{GENOMES}/hs1/bigZips/hs1.fa.gz",
}
"""UCSC's hg38, and T2T-CHM13 v2.0, which UCSC calls hs1."""
LONGEST_PAUSE = 60.0
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
COPY_BYTES = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be other ones in a while."""


class _Broken(Exception):
    """A connection that could not be made, or that ended early."""


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
    return fetch(url, wanted.checksums, Path(config.fasta), _patience(wanted))


def _patience(config: DownloadConfig) -> Patience:
    return Patience(config.attempts, config.first_pause)


def download_named(name: str, directory: Path) -> str:
    """Fetch a named assembly into a directory."""
    url = ASSEMBLIES[name]
    return fetch(url, None, directory / _file_name(url), Patience())


def fetch(url: str, checksums: str | None, destination: Path, patience: Patience) -> str:
    """Bring `url` to `destination`, checked by the MD5 that the list at `checksums` has for its file name.

    UserError when the address does not exist, the list lacks the file, the sum is wrong twice, or patience ends.
    """
    listed = checksums or f"{url.rsplit('/', 1)[0]}/md5sum.txt"
    digest = _listed_digest(listed, _file_name(url), patience)
    if destination.exists():
        if _md5(destination) == digest:
            return f"{destination} is there, with the MD5 of {listed}; nothing to do"
        raise UserError(
            f"{destination}: exists with another MD5 than {listed} has ({digest}); move it away and try again"
        )
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        _fill(url, part, patience)
        if _md5(part) != digest and resumed:
            # The part may be of an older version of the file; without it the server decides every byte.
            part.unlink()
            _fill(url, part, patience)
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
    with _open(url, {}) as answer:
        try:
            body: bytes = answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise _Broken(str(error)) from None
    return body


def _open(url: str, headers: dict[str, str]) -> Any:
    """The answer to a request; HTTPError for what the server refuses, _Broken when no answer comes."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(str(getattr(error, "reason", "") or error or type(error).__name__)) from None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fill(url: str, part: Path, patience: Patience) -> None:
    """Bring `part` to the whole length of the file."""
    with tqdm(unit="B", unit_scale=True, desc=_file_name(url)) as bar:
        # Patience is for attempts that bring nothing: each one that adds bytes starts the count again.
        while not _insistently(url, patience, lambda: _append(url, part, bar)):
            pass


def _insistently(url: str, patience: Patience, attempt: Callable[[], Any]) -> Any:
    """The result of `attempt`, tried again after broken connections and passing answers."""
    for tried in range(1, patience.attempts + 1):
        try:
            return attempt()
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise UserError(
                    f"{url}: the server answers {error.code} ({error.reason}); correct the address"
                ) from None
            problem = f"the server answers {error.code} ({error.reason})"
        except ValueError as error:
            raise UserError(f"{url}: not an address ({error}); give one that begins with https://") from None
        except _Broken as error:
            problem = str(error)
        if tried < patience.attempts:
            patience.sleep(min(patience.first_pause * 2 ** (tried - 1), LONGEST_PAUSE))
    raise UserError(f"{url}: no byte came in {patience.attempts} attempts ({problem}); run the command again to resume")


def _append(url: str, part: Path, bar: Any) -> bool:
    """One request for what `part` lacks. True when it is whole; False when bytes came, then the connection broke."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(url, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond our end: it is whole, or the MD5 will tell
            return True
        raise
    with answer:
        continues = answer.status == 206
        if continues and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise _Broken("the server sends another range than it was asked for")
        begin = have if continues else 0  # 200: the server ignores Range and sends the file from its start
        length = answer.headers.get("Content-Length")
        bar.total = begin + int(length) if length else None
        bar.update(begin - bar.n)
        end, broken = begin, ""
        with part.open("r+b" if have else "wb") as file:
            file.seek(begin)
            file.truncate()
            while not broken:
                try:
                    block = answer.read(COPY_BYTES)
                except (http.client.HTTPException, OSError) as error:
                    block, broken = getattr(error, "partial", b""), str(error) or type(error).__name__
                if not block:
                    break
                file.write(block)
                end += len(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if length and end < begin + int(length):  # a read in pieces ends silently when the connection does
        broken = broken or f"the connection ended after {end} of {begin + int(length)} bytes"
    if broken and end <= have:
        raise _Broken(broken)
    return not broken
