"""Ranks without torch, in real processes over real sockets: whatever befalls one, all end soon, and one says why."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.runtime.heartbeat import FAULT_CODE, Fault, Place, Pulse
from hyena_ds.runtime.monitor import Seen
from hyena_ds.runtime.watchdog import FIRST_SLOWER, SLOWER, Pace, Watchdog, speaker, stuck
from tests.paths import ROOT

BOUND = 20.0
"""Seconds to the end of all; the ranks' silence is 2 s, or with `patient` 600 s."""


@dataclass
class Ending:
    codes: list[int]
    errors: list[str]
    faults: list[dict[str, Any]]


def play(directory: Path, ranks: int, trouble: str = "", kill: tuple[int, signal.Signals] | None = None) -> Ending:
    """Run the processes, signal one of them once all make progress, and wait for the end of all."""
    module = [sys.executable, "-m", "tests.faults.beating_process"]
    commands = [[*module, str(rank), str(ranks), str(directory), trouble] for rank in range(ranks)]
    processes = [subprocess.Popen(c, cwd=ROOT, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        if kill is not None:
            deadline = time.monotonic() + 30
            while not all((directory / f"ready-{rank}").exists() for rank in range(ranks)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1.2)  # the monitor tells who is there once a second
            os.kill(processes[kill[0]].pid, kill[1])
        errors = [process.communicate(timeout=BOUND)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    file = directory / "faults.jsonl"
    faults = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return Ending([process.returncode for process in processes], errors, faults)


def said(ending: Ending) -> list[int]:
    """The ranks that told the user of the fault."""
    return [rank for rank, text in enumerate(ending.errors) if "hyena-ds: error: " in text]


@pytest.mark.parametrize(("victim", "teller"), [(2, 0), (0, 1)])
def test_a_killed_rank_is_named_at_once_and_all_leave(victim: int, teller: int, tmp_path: Path) -> None:
    """Its connection ends. The silence after which it would be missed is far longer than this test waits."""
    ending = play(tmp_path, 3, trouble=":patient", kill=(victim, signal.SIGKILL))
    assert ending.codes == [-signal.SIGKILL if rank == victim else FAULT_CODE for rank in range(3)]
    assert said(ending) == [teller]
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"], fault["step"]) == ("died", victim, 2)
    assert fault["text"] in ending.errors[teller]
    assert f"rank {victim} on " in fault["text"] and "connection" in fault["text"]


@pytest.mark.parametrize(("victim", "teller"), [(1, 0), (0, 1)])
def test_a_stopped_rank_is_silent_and_does_not_remain(victim: int, teller: int, tmp_path: Path) -> None:
    ending = play(tmp_path, 3, kill=(victim, signal.SIGSTOP))
    assert ending.codes == [-signal.SIGKILL if rank == victim else FAULT_CODE for rank in range(3)]
    assert said(ending) == [teller]
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"]) == ("silent", victim)
    assert f"rank {victim} on " in fault["text"] and "has been silent for" in fault["text"]


def test_the_rank_that_is_behind_the_others_is_the_stuck_one(tmp_path: Path) -> None:
    ending = play(tmp_path, 3, trouble="1:sleep")
    assert ending.codes == [FAULT_CODE] * 3
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"], fault["step"]) == ("stuck", 1, 2)
    assert "is behind the others; it is at tests/faults/beating_process.py" in fault["text"]
    assert "raise watchdog.step" in fault["text"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_is_told_with_its_rank_and_its_traceback_once(rank: int, tmp_path: Path) -> None:
    ending = play(tmp_path, 3, trouble=f"{rank}:raise")
    assert ending.codes == [FAULT_CODE] * 3
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"]) == ("raised", rank)
    assert fault["text"].endswith("raised ValueError: not a number")
    assert said(ending) == [0]
    assert ["Traceback" in text for text in ending.errors] == [other == rank for other in range(3)]


def test_a_broken_collective_is_not_the_cause_where_there_is_another(tmp_path: Path) -> None:
    ending = play(tmp_path, 3, trouble="1:broken", kill=(2, signal.SIGKILL))
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"]) == ("died", 2)
    assert not any("Traceback" in text for text in ending.errors)


def test_a_rank_that_is_told_to_leave_takes_the_others_along_and_it_is_no_fault(tmp_path: Path) -> None:
    ending = play(tmp_path, 3, trouble="2:leave")
    assert ending.codes == [143] * 3
    assert not ending.faults
    assert "stopped by SIGTERM" in ending.errors[0]


@pytest.mark.parametrize(("rank", "who"), [(0, "monitor"), (1, "heartbeat")])
def test_a_thread_of_the_heartbeat_that_has_a_bug_says_so_and_blames_no_rank(
    rank: int, who: str, tmp_path: Path
) -> None:
    ending = play(tmp_path, 3, trouble=f"{rank}:bug")
    assert ending.codes == [FAULT_CODE] * 3
    (fault,) = ending.faults
    assert (fault["kind"], fault["rank"]) == ("watch", rank)
    assert f"the {who} of rank {rank} on " in fault["text"] and "itself failed: KeyError: 'planted'" in fault["text"]
    assert said(ending) == [rank]
    assert ["Traceback" in text for text in ending.errors] == [other == rank for other in range(3)]


def test_a_watchdog_that_has_a_bug_says_so(tmp_path: Path) -> None:
    ending = play(tmp_path, 1, trouble="0:alone")
    assert ending.codes == [FAULT_CODE]
    assert ending.faults[0]["kind"] == "watch"
    assert "the watchdog of rank 0 on " in ending.errors[0] and "itself failed: KeyError: 'planted'" in ending.errors[0]


def test_a_start_without_all_ranks_ends_by_itself(tmp_path: Path) -> None:
    ending = play(tmp_path, 1, trouble="0:late")
    assert ending.codes == [FAULT_CODE]
    assert re.search(r"has been starting for \d+ s without reaching all other ranks", ending.errors[0])
    assert ending.faults[0]["kind"] == "stuck"


def test_a_rank_that_cannot_reach_rank_0_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    watchdog = Watchdog(WatchdogConfig(), tmp_path / "faults.jsonl")
    try:
        with pytest.raises(OSError) as caught:
            watchdog.join(2, lambda value: (port, "token"), lambda work: work())
        assert caught.value.strerror == (
            f"rank 1 cannot reach rank 0's heartbeat at port {port} (Connection refused); open the port, or set "
            "watchdog.enabled=false"
        )
    finally:
        watchdog.close()


def seen(rank: int, progress: int, late: float = 0.0, waiting: bool = False) -> Seen:
    pulse = Pulse("step", 7, "update", progress, allowed=10.0)
    return Seen(Place(rank, "host", "machine", 100 + rank), pulse, 100.0, 100.0 - late, "file.py:1 (f)", waiting)


def test_nobody_is_stuck_within_the_allowance() -> None:
    assert stuck([seen(0, 5, 9.9), seen(1, 4, 9.9)], 100.0) is None


def test_of_ranks_with_equal_progress_the_one_outside_the_collective_is_stuck() -> None:
    fault = stuck([seen(0, 5, 11, waiting=True), seen(1, 5, 11), seen(2, 5, 11, waiting=True)], 100.0)
    assert fault is not None and fault.rank == 1
    assert "is the one that the others wait for" in fault.text


def test_where_no_rank_is_behind_the_sentence_says_so() -> None:
    fault = stuck([seen(0, 5, 11, waiting=True), seen(1, 5, 11, waiting=True)], 100.0)
    assert fault is not None
    assert "all 2 ranks are stuck" in fault.text and "none is behind" in fault.text


def test_a_step_may_take_as_long_as_its_tokens_and_the_slowest_step_say() -> None:
    pace = Pace(least=120.0)
    assert pace.allowed(1000, first_of_stage=False) == 120.0
    pace.took(100.0, 1000)
    pace.took(1.0, 1000)  # a fast one shortens nothing
    assert pace.allowed(1000, first_of_stage=False) == pytest.approx(SLOWER * 100.0)
    # Ten times longer steps of the next stage: no false alarm, even when a token costs twice as much there.
    assert pace.allowed(10_000, first_of_stage=True) == pytest.approx(FIRST_SLOWER * SLOWER * 1000.0)
    assert FIRST_SLOWER * SLOWER > 2


def test_where_rank_0_is_lost_the_lowest_rank_that_can_be_alive_speaks() -> None:
    roster = [Place(rank, f"h{rank // 2}", f"h{rank // 2}", 9) for rank in range(4)]
    assert speaker(Fault("died", 3, 0, ""), roster) == 0
    assert speaker(Fault("died", 0, 0, ""), roster) == 1
    assert speaker(Fault("silent", 0, 0, ""), roster) == 2  # the whole host may be gone
    assert speaker(Fault("silent", 0, 0, ""), roster[:2]) == 1
