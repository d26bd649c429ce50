"""A hub on this machine: what huggingface_hub asks of one to fetch files of a repository."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "e8c1effa8673814e257e627d2e1eda9ea5a373f6"
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^/?]+)")


@contextmanager
def hub(repository: str, directory: Path, asked: list[str] | None = None) -> Iterator[str]:
    """The address of a hub that has the files of `directory` at COMMIT and main; paths that were asked for go to `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            if asked is not None:
                asked.append(self.path)
            match = _RESOLVE.match(self.path)
            code, error, content = 200, "", b""
            if match is None or match["repository"] != repository:
                code, error = 404, "RepoNotFound"
            elif match["revision"] not in (COMMIT, "main"):
                code, error = 404, "RevisionNotFound"
            elif not (directory / match["file"]).is_file():
                code, error = 404, "EntryNotFound"
            else:
                content = (directory / match["file"]).read_bytes()
            self.send_response(code)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if whole:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
