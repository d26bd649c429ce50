"""Fetches a published assembly over HTTP: resumes, checks, and appears under its name only when it is whole.

    md5sum.txt beside the file --> wanted MD5
    URL --Range requests, pauses that grow between attempts--> FILE.part --MD5 agrees--> FILE

FILE.part stays after an interruption, and the same command goes on from its end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.config import DownloadConfig, PrepConfig
from hyena_ds.data.remote.transfer import Broken, Refused, append, open_http
from hyena_ds.errors import UserError

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


def download(config: PrepConfig, config_name: str) -> str:
    """Fetch what the config's key `download` names to where its key `fasta` says; returns what to tell the user."""
    wanted = config.download
    if wanted is None:
        raise UserError(f"{config_name}: found no key 'download', wanted for instance 'download: {{name: hg38}}'")
    if not wanted.url and wanted.name not in ASSEMBLIES:
        raise UserError(
            f"{config_name}: download.name: found '{wanted.name}', wanted {' or '.join(ASSEMBLIES)}; "
            "or give its address as 'download.url'"
        )
    return fetch(wanted, Path(config.fasta))


def download_named(name: str, directory: Path) -> str:
    """Fetch a named assembly into a directory."""
    return fetch(DownloadConfig(name), directory / _file_name(ASSEMBLIES[name]))


def fetch(wanted: DownloadConfig, destination: Path, sleep: Callable[[float], None] = time.sleep) -> str:
    """Bring what is wanted to `destination`, checked by the MD5 that the list of checksums has for its file name.

    UserError when the address does not exist, the list lacks the file, the sum is wrong twice, all attempts in a row
    bring nothing, or the file has more bytes than it may.
    """
    url = wanted.url or ASSEMBLIES[wanted.name]
    listed = wanted.checksums or f"{url.rsplit('/', 1)[0]}/md5sum.txt"
    with tempfile.TemporaryDirectory() as directory:
        list_file = Path(directory) / "md5sum.txt"
        _bring(listed, list_file, MOST_LIST_BYTES, wanted, sleep)
        digest = _digest_in(list_file.read_text(encoding="utf-8", errors="replace"), listed, _file_name(url))
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
        for last in (not part.exists(), True):
            _fill(url, part, wanted, sleep)
            found = _md5(part)
            if found == digest:
                break
            part.unlink()  # it may be of an older version of the file; without it the server decides every byte
            if last:
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


def _digest_in(text: str, listed: str, name: str) -> str:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].lstrip("*").rsplit("/", 1)[-1] == name and len(words[0]) == 32:
            return words[0].lower()
    raise UserError(f"{listed}: found no MD5 of {name}; give another list as 'download.checksums'")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fill(url: str, part: Path, wanted: DownloadConfig, sleep: Callable[[float], None]) -> None:
    """Bring `part` to the whole length of the file. UserError where it has more bytes than are wanted, or the disk fewer."""
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

        _bring(url, part, int(wanted.gib * 2**30), wanted, sleep, arrived)


def _bring(
    url: str,
    part: Path,
    most: int,
    wanted: DownloadConfig,
    sleep: Callable[[float], None],
    arrived: Callable[[int, int | None], None] = lambda have, whole: None,
) -> None:
    """Bring `part` to the end of what is at `url`, at most `most` bytes, over broken connections and passing answers."""
    tried = 0
    while tried < wanted.attempts:
        if tried:
            sleep(min(wanted.first_pause * 2 ** (tried - 1), LONGEST_PAUSE))
        try:
            if not append(partial(open_http, url, TIMEOUT), part, most, arrived):
                return
            tried = 0  # patience is for attempts that bring nothing
        except Refused as error:
            raise UserError(
                f"{url}: {error}; correct the address, which begins with https://, or the bound 'download.gib'"
            ) from None
        except Broken as error:
            problem, tried = str(error), tried + 1
    raise UserError(f"{url}: no byte came in {wanted.attempts} attempts ({problem}); run the command again to resume")
