"""Whoever reaches the heartbeat's port: whatever one connection does, only that connection ends, and ranks still meet."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.runtime import door
from hyena_ds.runtime.door import INTRODUCTION_BYTES, SPARE, Door
from hyena_ds.runtime.heartbeat import FAULT_CODE, Fault, Member, Pulse, this_place
from hyena_ds.runtime.monitor import Monitor
from tests.faults.strangers import one_run
from tests.paths import ROOT
from tests.training.runs import make_shards

HERE = "127.0.0.1"
SILENCE = 4.0


class Run:
    """Rank 0's monitor for three ranks, which stays open for the third, and what it found."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.monitor = Monitor(this_place(0), 3, SILENCE, Pulse(), lambda ranks, now: None, self.faults.append, HERE)
        self._open: list[Any] = []

    def call(self, data: bytes = b"") -> socket.socket:
        stranger = socket.create_connection((HERE, self.monitor.port), timeout=10)
        self._open.append(stranger)
        stranger.sendall(data)
        return stranger

    def introduction(self, **changes: Any) -> bytes:
        return line({"token": self.monitor.token, "place": asdict(this_place(1)) | changes})

    def join(self, rank: int = 1) -> Member:
        place = replace(this_place(rank), pid=4_000_000 + rank)
        pulse = Pulse(progress=rank)
        member = Member(place, HERE, self.monitor.port, self.monitor.token, SILENCE, pulse, self.faults.append)
        self._open.append(member)
        return member

    def hears(self, rank: int) -> None:
        """The monitor gets a new beat of a rank: it lives, and it reads."""
        seen = self.monitor._seen[rank]
        last, deadline = seen.heard_at, time.monotonic() + 60
        while seen.heard_at == last or seen.pulse.progress != rank:
            assert time.monotonic() < deadline, self.faults
            time.sleep(0.05)

    def end(self) -> None:
        for each in reversed(self._open):
            with contextlib.suppress(OSError):
                each.close()
        self.monitor.close()


@pytest.fixture
def run() -> Iterator[Run]:
    started = Run()
    yield started
    started.end()


def line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends it, within the connection's timeout."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


WORDS = {
    "deep lists": b"[" * 2000 + b"\n",
    "deep objects": b'{"a":' * 800 + b"\n",
    "not JSON": b"GET / HTTP/1.1\r\n\r\n",
    "not UTF-8": b'{"token": "\xff\xfe"}\n',
    "UTF-16": '{"token": 1}'.encode("utf-16") + b"\n",
    "half a letter": b'{"token": "\\ud800"}\n',
    "a number": b"17\n",
    "a long number": b"1" * 4000 + b"\n",
    "no token": b'{"place": {}}\n',
    "another token": b'{"token": "guess", "place": {}}\nnot even JSON\n',
    "a token of another kind": b'{"token": [1, 2], "place": {}}\n',
    "infinity": b'{"token": Infinity}\n',
    "zeros": b"\0" * 100 + b"\n",
    "too much": b"x" * (INTRODUCTION_BYTES + 1),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_stranger_ends_its_own_connection_only(word: str, run: Run) -> None:
    assert is_closed(run.call(WORDS[word]))
    run.join()
    run.hears(1)
    assert not run.faults


@pytest.mark.parametrize(
    "place",
    [
        {"rank": 0},
        {"rank": 3},
        {"rank": -1},
        {"rank": True},
        {"rank": 1.0},
        {"rank": "1"},
        {"rank": None},
        {"rank": 10**400},
        {"rank": [[[]]]},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**31},
        {"host": 5},
        {"host": None},
        {"machine": {}},
        {"more": 1},
    ],
)
def test_a_place_that_no_rank_can_have_is_not_taken(place: dict[str, Any], run: Run) -> None:
    assert is_closed(run.call(run.introduction(**place)))
    run.join()
    run.hears(1)
    assert not run.faults


def test_a_rank_that_is_there_already_is_not_replaced(run: Run) -> None:
    run.join()
    assert is_closed(run.call(run.introduction()))
    run.hears(1)
    assert not run.faults


def test_who_says_nothing_is_let_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "INTRODUCTION_SECONDS", 0.3)
    assert is_closed(run.call())
    drop_by_drop = run.call(b"{")
    with contextlib.suppress(OSError):
        for _ in range(50):
            drop_by_drop.sendall(b" ")
            time.sleep(0.05)
    assert is_closed(drop_by_drop)


def test_a_place_at_the_door_goes_to_the_next_caller_so_that_a_rank_finds_one(run: Run) -> None:
    idle = [run.call() for _ in range(50)]
    run.join()
    for each in idle:
        each.settimeout(0.2)
    assert sum(not is_closed(each) for each in idle) <= SPARE + 2


def test_the_door_closes_with_the_last_rank(run: Run) -> None:
    idle = run.call()
    run.join(1)
    last = run.join(2)
    assert is_closed(idle)
    with pytest.raises(OSError):
        run.call()
    deadline = time.monotonic() + 60
    while [place.rank for place in last.roster] != [0, 1, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not run.faults


class Refusing:
    """A listening socket whose accept fails, again and again."""

    def __init__(self, error: int):
        self.error, self.calls = error, 0

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def accept(self) -> Any:
        self.calls += 1
        raise OSError(self.error, "planted")


@pytest.mark.parametrize(
    "error", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.EPROTO, errno.EAGAIN]
)
def test_an_accept_that_fails_is_tried_again_at_the_next_look_and_no_sooner(error: int) -> None:
    server = Refusing(error)
    waiting = Door(server)  # type: ignore[arg-type]
    assert waiting.look(0.0, 1) == []
    first = server.calls
    assert waiting.look(1.0, 1) == [] and first < server.calls <= 2 * first <= 64


GOOD = {"pulse": asdict(Pulse(progress=7, allowed=9.0)), "where": "here", "waiting": False}
MALFORMED: dict[str, Any] = {
    "no object": [1],
    "a list as pulse": {**GOOD, "pulse": []},
    "a pulse without fields": {**GOOD, "pulse": {}},
    "a pulse of more fields": {**GOOD, "pulse": {**GOOD["pulse"], "more": 1}},
    "a step that is a text": {**GOOD, "pulse": {**GOOD["pulse"], "step": "1"}},
    "progress beyond count": {**GOOD, "pulse": {**GOOD["pulse"], "progress": 10**300}},
    "infinite patience": {**GOOD, "pulse": {**GOOD["pulse"], "allowed": float("inf")}},
    "no number": {**GOOD, "pulse": {**GOOD["pulse"], "allowed": float("nan")}},
    "nowhere": {"pulse": GOOD["pulse"]},
    "waiting for 1": {**GOOD, "waiting": 1},
    "an error that is no text": {"raised": 5, "of_collective": False},
    "an error of what": {"raised": "error"},
    "a code that no process has": {"left": "why", "code": 256},
    "a fault that is none": {"fault": {"kind": "watch"}},
}


def test_a_message_of_a_rank_that_cannot_be_read_is_passed_over(run: Run) -> None:
    rank = run.call(run.introduction())
    for message in MALFORMED.values():
        rank.sendall(line(message))
    raws = (b"[" * 5000 + b"\n", b"\xff\n", b"x" * 300_000 + b"\n", b"9" * 5000 + b"\n")
    for raw in raws:
        rank.sendall(raw)
    rank.sendall(line({"bye": True}))
    rank.shutdown(socket.SHUT_WR)
    assert is_closed(rank)
    assert run.monitor._seen[1].unreadable == len(MALFORMED) + len(raws)
    assert not run.faults


def test_a_rank_that_says_nothing_readable_is_silent(run: Run) -> None:
    rank = run.call(run.introduction())
    deadline = time.monotonic() + 60
    while not run.faults:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            rank.sendall(line(MALFORMED["no number"]))
        time.sleep(0.1)
    (fault,) = run.faults
    assert (fault.kind, fault.rank) == ("silent", 1)
    assert "messages of it that could not be read: " in fault.text


def test_what_a_rank_says_cannot_write_to_the_terminal(run: Run) -> None:
    run.call(
        run.introduction(host="a\x1b[2Jb") + line({"raised": "x\r\n\x1b]0;y\x07\ud800" * 9000, "of_collective": False})
    )
    deadline = time.monotonic() + 60
    while not run.faults:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (fault,) = run.faults
    assert fault.text.isprintable() and "on a?[2Jb " in fault.text and len(fault.text) <= 1000


def test_a_rank_that_does_not_read_holds_up_nobody(run: Run) -> None:
    deaf = run.call(run.introduction())
    assert deaf.recv(1)  # it is in
    wire = run.monitor._seen[1].wire
    assert wire is not None
    with run.monitor._lock:
        wire.send({"filler": "x" * (32 << 20)})
    assert wire.owes
    member = run.join(2)
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * SILENCE:  # it hears rank 0 all the time, though the other one hears nothing
        deaf.sendall(line(GOOD))
        time.sleep(0.1)
    assert not run.faults
    member.close()
    deaf.sendall(line({"bye": True}))
    began = time.monotonic()
    run.monitor.close()
    assert time.monotonic() - began < 10


def test_ranks_meet_among_a_thousand_strangers_with_few_file_descriptors(tmp_path: Path) -> None:
    processes = []
    try:
        rank = [sys.executable, "-m", "tests.faults.beating_process"]
        processes.append(
            subprocess.Popen([*rank, "0", "2", str(tmp_path), ""], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        )
        resource.prlimit(processes[0].pid, resource.RLIMIT_NOFILE, (32, 32))
        port = _until(lambda: json.loads((tmp_path / "address.json").read_text())[0])
        attack = [
            sys.executable,
            "-m",
            "tests.faults.strangers",
            "--attack",
            str(port),
            "--idle",
            "500",
            "--seconds",
            "30",
        ]
        processes.append(subprocess.Popen(attack, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[1].stdout is not None
        assert processes[1].stdout.readline() == "under attack\n"
        processes.append(subprocess.Popen([*rank, "1", "2", str(tmp_path), ""], cwd=ROOT))
        _until(lambda: (tmp_path / "ready-0").stat() and (tmp_path / "ready-1").stat())
        time.sleep(4.0)  # twice the silence that ends a run
        assert [process.poll() for process in processes] == [None] * 3
        processes[2].send_signal(signal.SIGKILL)
        error = processes[0].communicate(timeout=60)[1]
        assert processes[0].returncode == FAULT_CODE
        assert "rank 1 on " in error and "died" in error
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            return look()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_is_under_attack_to_its_end_ends_as_planned(tmp_path: Path) -> None:
    make_shards(tmp_path)
    cost = one_run(tmp_path, "attacked", steps=25, idle=200, kind="open")
    print(f"{1000 * cost.seconds_a_step:.0f} ms of CPU a step, {cost.monitor:.4f} CPU for the monitor")
    assert cost.monitor < 0.25  # a bounded number of looks; 0.02 as a rule
