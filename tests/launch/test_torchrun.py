"""`hyena_ds.runtime.torchrun`: the ranks' own exit code, and a sentence where machines cannot meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.errors import UserError
from hyena_ds.parallel.listening import free_port
from tests.paths import ROOT


def torchrun(*arguments: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port or free_port())]
    command = [sys.executable, "-m", "hyena_ds.runtime.torchrun", *options, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("end", "code"),
    [("exit 2", 2), ("[ $RANK = 0 ] || exit 143; exec sleep 60", 143), ("kill -9 $BASHPID", 137)],
)
def test_the_exit_code_is_that_of_the_first_rank_that_failed(end: str, code: int) -> None:
    done = torchrun("--no-python", "bash", "-c", end)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_a_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = torchrun("--no-python", "true", port=port)
    assert done.returncode == UserError.exit_code, done.stderr
    assert "choose another MASTER_PORT" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_first_machine_that_is_not_there_is_a_fault_of_the_run(tmp_path: Path) -> None:
    options = ["--nnodes", "2", "--node-rank", "1", "--rdzv-conf", "timeout=2"]
    done = torchrun(*options, "--no-python", "true")
    assert done.returncode == 70, done.stderr
    assert "look whether machine 0 has started" in done.stderr
    assert "Traceback" not in done.stderr
