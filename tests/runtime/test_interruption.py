"""Signals, stop file and deadline, in one process and through the relay of a launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.runtime.interruption import ECHO_SECONDS, SIGNALS, Interruption, Requests, request_in
from tests.paths import ROOT
from tests.training.runs import write_config

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "3h50", "50m3h", "soon", "1.5h", "nan"])
def test_other_texts_are_refused_with_the_forms_that_are_known(text: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path)
    wanted = f"stop_after: found '{text}', wanted a time like 3h50m, 90s or 13800 (seconds)"
    with pytest.raises(UserError, match=re.escape(wanted)):
        load_yaml(config, RunConfig, [f"stop_after='{text}'"])


def test_a_plain_number_of_seconds_needs_no_quotes(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path, stop_after=600)
    assert load_yaml(config, RunConfig).stop_after_seconds == 600


@pytest.mark.parametrize("name", ["silence", "start", "step", "validation", "save"])
def test_a_bound_of_no_time_is_refused(name: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path, watchdog={name: 0})
    with pytest.raises(UserError, match=rf"watchdog\.{name}: found 0, wanted at least 1 second"):
        load_yaml(config, RunConfig)


def test_a_negative_number_of_restarts_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path, supervisor={"restarts_without_progress": -1})
    with pytest.raises(UserError, match=r"supervisor\.restarts_without_progress: found -1, wanted 0 or more"):
        load_yaml(config, RunConfig)


@pytest.mark.parametrize(
    ("later", "at_once"),
    [
        ([(INT, 0.1)], False),
        ([(TERM, 1.9), (INT, 1.99)], False),
        ([(INT, ECHO_SECONDS)], True),
        ([(INT, 0.1), (INT, 2.1)], True),
        ([(TERM, 10.0), (USR1, 60.0)], False),
    ],
)
def test_only_a_second_ctrl_c_that_is_no_echo_means_at_once(later: list[tuple[int, float]], at_once: bool) -> None:
    requests = Requests()
    assert not requests.hear(INT, 100.0)
    answers = [requests.hear(number, 100.0 + seconds) for number, seconds in later]
    assert requests.first == INT
    assert any(answers) == at_once


def test_one_rank_of_many_stops_all_and_a_signal_goes_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYENA_STARTED", repr(time.monotonic() - 100))
    late, early = Interruption("90s", 90.0), Interruption("90s", 10800.0)  # one began later
    assert early.stop_of(early.votes()) is None
    everyone = [a + b for a, b in zip(late.votes(), early.votes(), strict=True)]
    stop = early.stop_of(everyone)
    assert stop is not None and (stop.code, stop.why) == (75, "the deadline (stop_after: 90s)")
    everyone[SIGNALS.index(USR1)] += 1
    stop = early.stop_of(everyone)
    assert stop is not None and (stop.code, stop.why) == (128 + USR1, "SIGUSR1")


@pytest.mark.parametrize(("content", "number"), [("10\n", USR1), ("15", TERM), ("", TERM), ("please", TERM)])
def test_a_stop_file_asks_for_a_signal_and_a_touched_one_for_sigterm(content: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    assert request_in(file) is None
    file.write_text(content)
    assert request_in(file) == number


RANK = """
import ctypes, sys, time
from hyena_ds.runtime.interruption import Interruption
ear = Interruption()
ear.listen()
if sys.argv[1] != "starting":
    ear.hold()
print("ready", flush=True)
if sys.argv[1] == "deaf":  # a call into C that no signal interrupts, as a collective
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex), library.pthread_mutex_lock(mutex)
while ear.stop_of(ear.votes()) is None:
    time.sleep(0.05)
print(ear.stop_of(ear.votes()).why)
sys.exit(ear.stop_of(ear.votes()).code)
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(processes: list[subprocess.Popen[str]], *command: str, **environment: str) -> subprocess.Popen[str]:
    """A process that has said that it is ready."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    processes.append(process)
    assert process.stdout is not None and "ready" in process.stdout.readline()
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_a_signal_ends_the_rank_at_once(number: signal.Signals, processes: list) -> None:
    rank = start(processes, sys.executable, "-c", RANK, "starting")
    rank.send_signal(number)
    _, error = rank.communicate(timeout=60)
    assert rank.returncode == 128 + number
    assert "no step was under way" in error and "Traceback" not in error


def ignoring(*numbers: signal.Signals) -> list[str]:
    """The words before a command that start it with signals ignored, as nohup and a shell's & do."""
    ignore = "; ".join(f"signal.signal({int(number)}, signal.SIG_IGN)" for number in numbers)
    return [sys.executable, "-c", f"import os, signal, sys; {ignore}; os.execvp(sys.argv[1], sys.argv[1:])"]


def test_a_signal_that_was_ignored_at_the_start_stays_so(processes: list) -> None:
    rank = start(processes, *ignoring(INT, signal.SIGHUP), sys.executable, "-c", RANK, "starting")
    rank.send_signal(INT)
    rank.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert rank.poll() is None
    rank.send_signal(TERM)
    assert rank.communicate(timeout=60) and rank.returncode == 128 + TERM


@pytest.mark.slow
def test_tests_of_signals_pass_where_whoever_starts_them_ignores_signals() -> None:
    this = f"{Path(__file__).relative_to(ROOT)}::test_before_the_first_step_a_signal_ends_the_rank_at_once"
    command = [*ignoring(INT, signal.SIGHUP), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_in_a_step_a_stop_file_waits_for_the_step(processes: list, tmp_path: Path) -> None:
    rank = start(processes, sys.executable, "-c", RANK, "holding", HYENA_STOP_FILE=str(tmp_path / "stop"))
    (tmp_path / "stop").write_text("10")
    output, _ = rank.communicate(timeout=60)
    assert (rank.returncode, output) == (128 + USR1, "SIGUSR1\n")


def test_a_second_ctrl_c_ends_a_rank_that_hangs_in_a_collective(processes: list) -> None:
    rank = start(processes, sys.executable, "-c", RANK, "deaf")
    rank.send_signal(INT)
    rank.send_signal(INT)
    time.sleep(ECHO_SECONDS + 0.2)
    assert rank.poll() is None  # an echo
    rank.send_signal(INT)
    _, error = rank.communicate(timeout=60)
    assert rank.returncode == 130
    assert "a second Ctrl-C" in error


def runs(process: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


LAUNCHER = """
sleep 1000 & echo ready $!
trap 'echo "the launcher was signalled"' INT TERM USR1 HUP
while [ ! -e "$HYENA_STOP_FILE" ]; do sleep 0.1; done
echo "asked $(cat "$HYENA_STOP_FILE")"
"""
"""A launcher whose rank is `sleep 1000`."""


def relay(processes: list[subprocess.Popen[str]], script: str) -> tuple[subprocess.Popen[str], int]:
    """The relay around a launcher, and the process id of its rank."""
    command = [sys.executable, "-m", "hyena_ds.runtime.relay", "bash", "-c", LAUNCHER + script]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    processes.append(process)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_the_relay_asks_the_ranks_and_signals_nobody(number: signal.Signals, processes: list) -> None:
    process, rank = relay(processes, f"kill -9 $!; exit {128 + number}")
    process.send_signal(number)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output == f"asked {number:d}\n"
    assert error.count("the run finishes its step, saves and leaves") == 1
    assert not runs(rank)


def test_signals_that_come_while_others_are_heard_are_echoes_too(processes: list) -> None:
    process, _ = relay(processes, "kill -9 $!; exit 143")
    for _ in range(150):
        process.send_signal(TERM)
        time.sleep(0.0002)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 143 and output == "asked 15\n"
    assert error.count("the run finishes its step, saves and leaves") == 1 and "Traceback" not in error


def test_a_run_that_completes_although_it_was_asked_to_stop_returns_0(processes: list) -> None:
    process, _ = relay(processes, "kill $!; exit 0")
    process.send_signal(TERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_second_ctrl_c_ends_the_launcher_and_its_ranks_at_once(processes: list) -> None:
    process, rank = relay(processes, "sleep 1000")
    process.send_signal(INT)
    time.sleep(ECHO_SECONDS + 0.2)
    process.send_signal(INT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not runs(rank)


def test_a_launcher_that_ends_before_its_ranks_has_not_succeeded_whatever_it_says(processes: list) -> None:
    command = [sys.executable, "-m", "hyena_ds.runtime.relay", "bash", "-c", "sleep 1000 & echo $!; exit 0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "the launcher ended before its ranks" in done.stderr
    assert not runs(int(done.stdout))


def test_a_launcher_killed_by_a_signal_is_a_failure() -> None:
    command = [sys.executable, "-m", "hyena_ds.runtime.relay", "bash", "-c", "kill -USR1 $$"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 128 + USR1


def test_the_deadline_counts_from_the_outermost_command() -> None:
    show = 'import json, os; print(json.dumps([os.environ["HYENA_STARTED"], os.environ["HYENA_RELAY_PID"]]))'
    command = [sys.executable, "-m", "hyena_ds.runtime.relay", sys.executable, "-c", show]
    own = {**os.environ, "HYENA_STARTED": "12.5"}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)[0] == "12.5"
