"""A server on this machine that hands out a directory, over HTTP or as a bucket, and misbehaves as it is told."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class AfarServer(ThreadingHTTPServer):
    """Serves DIRECTORY/NAME as /genome/NAME."""

    daemon_threads = True

    def __init__(self, directory: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        """What happens to the next requests for a file: a status; 'break N', the connection ends after N bytes; 'wrong',
        one byte is another; 'stall', half of it comes and then nothing; 'hang', nothing comes; or 'ok'."""
        self.always: dict[str, int | str] = {}
        """The same, for every request that `faults` says nothing of."""
        self.asked: list[tuple[str, str | None]] = []
        """File and Range of every request."""
        self.released = threading.Event()
        """Ends what stalls."""
        self.seconds_per_answer = 0.0
        self.authorization: str | None = None
        """The header without which every request is answered 401."""
        self.redirects_to: str | None = None
        """Where every request is sent on to, as an address without a path."""
        self.seen: list[tuple[str, str | None]] = []
        """Path with query, and Authorization, of every request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def place(self) -> str:
        return f"{self.address}/genome"

    def times(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(asked == name for asked, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    server: AfarServer

    def do_GET(self) -> None:
        path, wanted = self.path.partition("?")[0], self.headers.get("Range")
        name = path.removeprefix("/genome/")
        self.server.asked.append((name, wanted))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.server.authorization not in (None, self.headers.get("Authorization")):
            self.send_error(401)
            return
        if self.server.redirects_to is not None:
            self.send_response(302)
            self.send_header("Location", self.server.redirects_to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        queue = self.server.faults[name]
        fault = queue.pop(0) if queue else self.server.always.get(name, "ok")
        file = self.server.directory / name
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if not path.startswith("/genome/") or not file.is_file():
            self.send_error(404)
            return
        body = bytearray(file.read_bytes())
        if fault == "wrong":
            body[len(body) // 2] ^= 1
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if begin and begin >= len(body):
            self.send_error(416)
            return
        time.sleep(self.server.seconds_per_answer)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        rest = body[begin:]
        if fault.startswith("break "):
            rest = rest[: int(fault.removeprefix("break "))]
        if fault in ("stall", "hang"):
            self.wfile.write(rest[: len(rest) // 2] if fault == "stall" else b"")
            self.wfile.flush()
            self.server.released.wait(60)
            return
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(directory: Path) -> Iterator[AfarServer]:
    """A server of `directory`, in a thread."""
    server = AfarServer(directory)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
