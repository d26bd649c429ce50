"""A rank's side of the heartbeat, before whoever answers at rank 0's port: it believes nothing that it cannot read."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from hyena_ds.runtime import heartbeat
from hyena_ds.runtime.heartbeat import Fault, Member, Pulse, this_place
from hyena_ds.runtime.wire import Wire, drain
from tests.paths import ROOT

HERE = "127.0.0.1"
SILENCE = 4.0


def test_a_line_is_whole_however_slowly_the_other_side_takes_it() -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = Wire(ours), Wire(theirs, longest=1 << 20)
    messages = [{"number": number, "filler": "x" * 100_000} for number in range(20)]
    for message in messages:
        sender.send(message)
    assert sender.owes
    found: list[bytes] = []
    while len(found) < len(messages):
        found += receiver.lines()
        sender.flush()
    assert [json.loads(each) for each in found] == messages
    drain([sender], 1.0)
    assert not sender.owes


class Impostor:
    """Listens where rank 0 should, and answers each line of a member with its own words."""

    def __init__(self, answers: Callable[[], bytes]):
        self.server = socket.create_server((HERE, 0))
        self.port = self.server.getsockname()[1]
        self._answers = answers
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self.server.accept()
        with contextlib.suppress(OSError), connection:
            while connection.recv(1 << 16):
                connection.sendall(self._answers())


def test_a_member_passes_over_what_it_cannot_read_and_calls_rank_0_silent() -> None:
    faults: list[Fault] = []
    words = [b"[" * 5000, b"\xff", b"x" * 300_000, b'{"roster": 5}', b'{"roster": [{"rank": 1}]}', b'{"fault": {}}']
    bad = {"kind": "silent", "rank": 0, "step": 0, "text": "x", "code": 10**30}
    place = {"rank": 0, "host": "a", "machine": this_place(0).machine, "pid": -1}
    words += [
        json.dumps({"fault": bad}).encode(),
        json.dumps({"roster": [place]}).encode(),
        b'{"alive": ' + b"1" * 5000,
    ]
    impostor = Impostor(lambda: b"\n".join(words) + b"\n")
    member = Member(this_place(1), HERE, impostor.port, "token", SILENCE, Pulse(), faults.append)
    deadline = time.monotonic() + 20
    while not faults:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        member.beat()
    assert [(fault.kind, fault.rank) for fault in faults] == [("silent", 0)]
    assert member.roster == []


def test_a_member_whose_caller_hangs_up_before_an_answer_calls_again_and_gives_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server((HERE, 0)) as server:
        calls: list[int] = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    calls.append(1)

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setattr(heartbeat, "MEETING_SECONDS", 2.0)
        with pytest.raises(OSError):
            Member(this_place(1), HERE, server.getsockname()[1], "token", 1.0, Pulse(), lambda fault: None)
        assert len(calls) > 2
        server.shutdown(socket.SHUT_RDWR)


def test_the_main_threads_place_is_read_while_it_runs_on_and_garbage_is_collected() -> None:
    # Python 3.12 and later warn of a fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.runtime.stack_churn", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert int(done.stdout) > 0
