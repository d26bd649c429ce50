"""A bucket on this machine: moto's server in a process of its own, behind a door that breaks connections as it is told.

client --Door (this process)--> moto (its own process)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.paths import ROOT

NAME = "bucket"
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_START_SECONDS = 60


class Door:
    """Forwards connections to `port`."""

    def __init__(self, port: int):
        self._port, self._count = port, 0
        self.every = 0
        """Every so many-th connection ends after `bytes`; 0 lets all through."""
        self.bytes = 3000
        self.shut = False
        """Connections are taken, and nothing is answered."""
        self.broken = 0
        """Connections that were ended early."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._listener.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._count += 1
                if self.shut:
                    client.close()
                    continue
                breaks = self.every > 0 and self._count % self.every == 0
                server = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(*pair, breaks), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, breaks: bool) -> None:
        passed = 0
        with suppress(OSError):
            while block := source.recv(1 << 16):
                passed += len(block)
                if self.shut or (breaks and passed > self.bytes):
                    self.broken += 1
                    break
                target.sendall(block)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def bucket() -> Iterator[Door]:
    """An empty bucket `NAME`; this process's environment names it."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ends = threading.Timer(_START_SECONDS, server.kill)
    ends.start()
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        ends.cancel()
        door = Door(port)
        os.environ.update(door.environment)
        import boto3

        boto3.client("s3").create_bucket(Bucket=NAME)
        yield door
        door.close()
    finally:
        ends.cancel()
        server.kill()
        server.wait(10)
