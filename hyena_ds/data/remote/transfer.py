"""Brings one file from afar into a file here, a connection at a time; the next one goes on where the last one broke.

    address --opener--> open(begin) -> Answer (bytes from `begin` on) --append--> FILE grows; whole, or the connection ended

Each call is one attempt: how often, and with what pauses, is the caller's business (data/remote/fetching.py, and the download of
genomes). Only the standard library, but for s3.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import select
import shlex
import signal
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from hyena_ds.config.remote import NAME, expanded, is_afar, variables_of
from hyena_ds.files.whole import to_disk
from hyena_ds.redaction import shown, without, words_of

COPY_BYTES = 1 << 18
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may be other ones in a while."""


class Broken(Exception):
    """A connection that could not be made, or that ended early: another attempt may go further."""


class Refused(Exception):
    """An answer that no other attempt would change."""


@dataclass(frozen=True)
class Answer:
    """Bytes on their way."""

    begin: int
    """Where in the file they begin: 0 where the source cannot begin elsewhere."""
    length: int | None
    """How many will come, where that is told."""
    read: Callable[[int], bytes]
    """At most so many of them; none at the end. Raises OSError, HTTPException or Broken."""
    close: Callable[[], None]


Opener = Callable[[int], Answer | None]
"""open(begin): the bytes from `begin` on; None when nothing lies beyond. Raises Broken or Refused."""


@dataclass(frozen=True)
class Address:
    """Where one file is fetched from; as text it is without the secrets of its place."""

    secret: str = field(repr=False)
    """The URL or `pipe:` command, whole."""
    shown: str
    words: tuple[str, ...] = field(repr=False, default=())
    """The secrets in it."""

    def __str__(self) -> str:
        return self.shown

    def without_secrets(self, text: str) -> str:
        """What a server or a command said, which may repeat them."""
        return without(text, self.words)


def address_of(place: str, name: str) -> Address:
    """The address of the file `name` of a place afar (config/remote.py). Raises UserError where its variables are not set."""
    whole = expanded(place)
    values = [os.environ[name] for name in variables_of(place)]
    return Address(_joined(whole, name), named(place, name), words_of(whole, values))


def named(place: str, name: str) -> str:
    """The file `name` of a place, as messages name it: of an address host and path, of a command nothing but variables."""
    if place.startswith("pipe:"):
        return f"{shown(place)} ({name})"
    if not is_afar(place):
        return _joined(place, name)
    parts = urlsplit(_joined(shown(place), name))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _joined(place: str, name: str) -> str:
    if place.startswith("pipe:"):
        return place.replace(NAME, shlex.quote(name))
    if not is_afar(place):
        return f"{place}/{name}"
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def opener(address: Address, stall: float) -> Opener:
    """How the file at `address` is opened; `stall` seconds without a byte break the connection."""
    if address.secret.startswith("pipe:"):
        return partial(_open_pipe, address.secret.removeprefix("pipe:"), stall)
    if address.secret.startswith("s3://"):
        return partial(_open_s3, address.secret, stall)
    return partial(open_http, address.secret, stall)


def append(open_: Opener, part: Path, most: int, arrived: Callable[[int, int | None], None]) -> str:
    """One attempt to bring what `part` lacks. Empty when it is whole; else what broke the connection after some bytes.

    `arrived` is told how long `part` is now, and the whole file's length where it is known. Raises Broken when no byte
    came, Refused (also of a source that has more than `most` bytes, of which none are kept), or OSError when `part`
    cannot be written.
    """
    have = part.stat().st_size if part.exists() else 0
    if have > most:
        part.unlink()
        have = 0
    answer = open_(have)
    if answer is None:
        return ""
    broken = ""
    try:
        end = answer.begin
        wanted = None if answer.length is None else answer.begin + answer.length
        if wanted is not None and wanted > most:
            raise Refused(f"it has {wanted:,} bytes, wanted at most {most:,}")
        arrived(end, wanted)
        with part.open("r+b" if have else "wb") as file:
            file.seek(end)
            file.truncate()
            while not broken:
                try:
                    block = answer.read(min(COPY_BYTES, most + 1 - end))
                except (Broken, http.client.HTTPException, OSError) as error:
                    block, broken = getattr(error, "partial", b""), str(error) or type(error).__name__
                if not block:
                    break
                if end + len(block) > most:
                    file.truncate(0)
                    raise Refused(f"it has more bytes than the {most:,} that are wanted")
                file.write(block)
                end += len(block)
                arrived(end, wanted)
            to_disk(file)
    finally:
        answer.close()
    if wanted is not None and end < wanted:  # a read in pieces ends silently when the connection does
        broken = broken or f"the connection ended after {end} of {wanted} bytes"
    if broken and end <= have:
        raise Broken(broken)
    return broken


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Another host is not given the password of the one that was asked."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request; as in the standard library, but for the password."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        password = req.get_header("Authorization")
        if following is not None and password is not None and _origin(newurl) == _origin(req.full_url):
            following.add_unredirected_header("Authorization", password)
        return following


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url).scheme, urlsplit(url).netloc


def _request(url: str, begin: int) -> urllib.request.Request:
    """Ask for the file from byte `begin` on, with the user and password of the address."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl())
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    if at:
        name, _, password = user.partition(":")
        text = f"{unquote(name)}:{unquote(password)}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(text).decode()}")
    return request


def open_http(url: str, timeout: float, begin: int = 0) -> Answer | None:
    """Ask for the file from byte `begin` on."""
    try:
        answer: Any = urllib.request.build_opener(_Redirects).open(_request(url, begin), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and begin:
            return None
        kind = Broken if error.code in _PASSING else Refused
        raise kind(f"the server answers {error.code} ({' '.join(str(error.reason).split())})") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise Refused(f"not an address ({error})") from None
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", "") or error
        kind = Refused if isinstance(reason, ssl.SSLCertVerificationError) else Broken
        raise kind(str(reason) or type(error).__name__) from None
    continues = answer.status == 206
    if continues and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {begin}-"):
        answer.close()
        raise Broken("the server sends another range than it was asked for")
    # 200 means that the server ignores Range and sends the file from its start. `length` is None where Content-Length is
    # no number.
    return Answer(begin if continues else 0, getattr(answer, "length", None), answer.read1, answer.close)


def _open_s3(address: str, timeout: float, begin: int = 0) -> Answer | None:
    """The same of a bucket. Credentials, region and endpoint are those that every AWS tool finds."""
    try:
        import boto3  # noqa: F401 - whether it is there
        import botocore.exceptions
        import urllib3.exceptions
    except ImportError:
        raise Refused(
            "s3:// needs boto3, which is not installed: pip install boto3, or write pipe:COMMAND with the command "
            "aws s3 cp s3://BUCKET/PATH/{shard} -"
        ) from None
    bucket, key = urlsplit(address).netloc, urlsplit(address).path.lstrip("/")
    requested = {"Range": f"bytes={begin}-"} if begin else {}
    try:
        # Of this process alone: a forked one would share its connections.
        answer = _s3_client(os.getpid(), timeout).get_object(Bucket=bucket, Key=key, **requested)
    except botocore.exceptions.ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if status == 416 and begin:
            return None
        kind = Broken if status in _PASSING else Refused
        raise kind(f"the server answers {status} ({error.response['Error'].get('Code')})") from None
    except (
        botocore.exceptions.NoCredentialsError,
        botocore.exceptions.PartialCredentialsError,
        botocore.exceptions.ProfileNotFound,
        botocore.exceptions.ParamValidationError,
    ) as error:
        raise Refused(str(error)) from None
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise Broken(str(error)) from None
    body = answer["Body"]

    def read(count: int) -> bytes:
        try:
            # Less at a time than over HTTP: what had arrived of a block is lost when it breaks.
            found: bytes = body.read(min(count, 1 << 16))
            return found
        except (botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError) as error:
            raise Broken(str(error)) from None

    return Answer(begin if "ContentRange" in answer else 0, answer.get("ContentLength"), read, body.close)


@lru_cache(maxsize=4)
def _s3_client(process: int, timeout: float) -> Any:
    """Making one takes a while; threads may share it."""
    import boto3
    import botocore.config

    settings = botocore.config.Config(
        connect_timeout=timeout, read_timeout=timeout, retries={"mode": "standard", "total_max_attempts": 1}
    )
    return boto3.session.Session().client("s3", config=settings)


def _open_pipe(command: str, timeout: float, begin: int = 0) -> Answer:
    """Run a shell command, as WebDataset's `pipe:` does; its output is the file, always from the start."""
    # A process group of its own, so that nothing of a pipeline is left; in our session, so that it ends with the run.
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None and process.stderr is not None
    output = process.stdout.fileno()
    complaints: deque[bytes] = deque(maxlen=2)  # the last blocks: a command may complain for ever
    listener = threading.Thread(target=_listen, args=(process.stderr, complaints), daemon=True)
    listener.start()

    def read(count: int) -> bytes:
        if not select.select([output], [], [], timeout)[0]:
            raise Broken(f"the command wrote nothing for {timeout:g} seconds")
        block = os.read(output, count)
        if not block:
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise Broken(f"the command did not end within {timeout:g} seconds after its output") from None
            if code:
                listener.join(1.0)  # whatever the command has left running may keep its errors open
                last = b"".join(complaints).decode("utf-8", "replace").strip().splitlines()[-1:]
                raise Broken(": ".join([f"the command ended with code {code}", *last]))
        return block

    def close() -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

    return Answer(0, None, read, close)


def _listen(errors: IO[bytes], heard: deque[bytes]) -> None:
    """Keep the last of what a command complains, until nobody is left who could."""
    with errors:
        while block := os.read(errors.fileno(), 1 << 12):
            heard.append(block)
