"""The supervisor around small shell scripts that fail as runs do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyena_ds.checkpoints.directory import write_note
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.supervisor import FIRST_PAUSE, LONGEST_PAUSE, Failure, Restarts, newest_step
from tests.paths import ROOT
from tests.training.runs import write_config

BEGIN = """
mkdir -p "$RUN/checkpoints"
echo start >> "$RUN/starts"
starts=$(wc -l < "$RUN/starts")
checkpoint() { echo "step-0000000$1" > "$RUN/checkpoints/latest"; }
fault() { echo '{"time": "now", "step": '"$1"', "rank": 1, "kind": "'"$2"'", "text": "'"$3"'"}' >> "$RUN/faults.jsonl"; exit 70; }
"""


def command(directory: Path, script: str, restarts: int = 5) -> list[str]:
    config = write_config(directory / "config.yaml", directory, supervisor={"restarts_without_progress": restarts})
    launch = directory / "launch.sh"
    launch.write_text(f"RUN='{directory / 'runs' / 'run'}'\n{BEGIN}{script}\n")
    return [sys.executable, "-m", "hyena_ds", "supervise", str(config), "--", "bash", str(launch)]


def supervise(directory: Path, script: str, restarts: int = 5) -> tuple[int, int, list[str]]:
    """Exit code, number of starts, and what the supervisor said."""
    done = subprocess.run(
        command(directory, script, restarts), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("hyena-ds supervise: ")]
    file = directory / "runs" / "run" / "starts"
    return done.returncode, len(file.read_text().splitlines()) if file.exists() else 0, lines


@pytest.mark.parametrize("code", [0, 2, 3, 75, 130, 138, 143])
def test_a_run_that_ended_as_wanted_is_not_started_again(code: int, tmp_path: Path) -> None:
    assert supervise(tmp_path, f"exit {code}") == (code, 1, [])


def test_a_dead_rank_costs_one_restart_and_one_line(tmp_path: Path) -> None:
    code, starts, lines = supervise(tmp_path, "checkpoint 3; [ $starts = 2 ] || fault 4 died 'rank 1 died'")
    assert (code, starts) == (0, 2)
    assert lines == ["hyena-ds supervise: rank 1 died (exit code 70); starting again from step 3 in 1 s"]


def test_parts_on_the_hosts_disks_are_progress_but_not_where_hosts_are_lost(tmp_path: Path) -> None:
    directory = RunDirectory(load_yaml(write_config(tmp_path / "config.yaml", tmp_path), RunConfig))
    assert newest_step(directory) == 0
    write_note(directory.checkpoints, "0123456789abcdef", 7)
    assert (newest_step(directory), newest_step(directory, local=False)) == (7, 0)
    (directory.checkpoints / "latest").write_text("step-00000005")
    assert (newest_step(directory), newest_step(directory, local=False)) == (7, 5)
    for damaged in ("", "7", "run seven", "run 7 7", "\0" * 200):
        (directory.checkpoints / "local").write_text(damaged)
        assert newest_step(directory) == 5, damaged


@pytest.mark.parametrize("error", ["raised ValueError: bad", "ended the run: stage 0: out of memory"])
def test_the_same_error_at_the_same_step_twice_is_not_tried_a_third_time(tmp_path: Path, error: str) -> None:
    script = f'checkpoint 3; fault 4 raised "rank $starts (process $$) {error}"'
    code, starts, lines = supervise(tmp_path, script)
    assert (code, starts) == (70, 2)
    assert lines[-1].endswith("giving up: step 4 raised the same error twice in a row")


def test_an_error_at_another_step_is_another_error(tmp_path: Path) -> None:
    script = '[ $starts = 3 ] || fault $starts raised "rank 1 raised ValueError: bad"'
    assert supervise(tmp_path, script)[:2] == (0, 3)


def test_deaths_without_a_newer_checkpoint_are_counted(tmp_path: Path) -> None:
    code, starts, lines = supervise(tmp_path, "checkpoint 3; kill -9 $$", restarts=1)
    assert (code, starts) == (137, 2)
    assert lines[-1].endswith(
        "giving up: restarts without a newer checkpoint: 1 (supervisor.restarts_without_progress)"
    )


def test_what_a_failed_launch_left_is_ended_before_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "left"
    script = f"[ $starts = 2 ] && exit 0; (sleep 0.7; touch {left}) & exit 1"
    assert supervise(tmp_path, script)[:2] == (0, 2)
    time.sleep(1.0)
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_run_is_not_started_again(number: signal.Signals, tmp_path: Path) -> None:
    script = f"trap 'exit 70' TERM USR1 INT; touch {tmp_path}/listens; while :; do sleep 0.1; done"
    process = subprocess.Popen(command(tmp_path, script), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    _wait_for(tmp_path / "listens")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 70
    assert len((tmp_path / "runs" / "run" / "starts").read_text().splitlines()) == 1


def test_a_signal_in_the_pause_ends_the_supervisor(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path, "exit 1"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline(), process.stderr.readline()  # after the second line the pause is 2 s
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_launch_command_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path)
    line = [sys.executable, "-m", "hyena_ds", "supervise", str(config), "--", "no-such-launcher"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no-such-launcher: cannot be started (No such file or directory)" in done.stderr


def test_pauses_double_up_to_five_minutes_and_begin_anew_after_progress() -> None:
    restarts = Restarts(100, step=0)
    pauses = [restarts.after(Failure("", 0, None)) for _ in range(11)]
    assert pauses == [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(11)]
    assert restarts.after(Failure("", 1, None)) == FIRST_PAUSE


def test_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import hyena_ds.runtime.supervisor, hyena_ds.runtime.relay"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)


def test_faults_that_are_not_readable_are_passed_and_the_run_is_started_again(tmp_path: Path) -> None:
    """A power cut, a torn line that the next fault does not continue, and rows of other types."""
    script = (
        'printf "\\0\\0\\377\\n{\\"step\\": \\"4\\", \\"kind\\": [], \\"text\\": 1}\\n" >> "$RUN/faults.jsonl"; '
        "checkpoint 3; [ $starts = 2 ] || fault 4 died 'rank 1 died'"
    )
    code, starts, lines = supervise(tmp_path, script)
    assert (code, starts) == (0, 2)
    assert lines == ["hyena-ds supervise: rank 1 died (exit code 70); starting again from step 3 in 1 s"]


@pytest.mark.parametrize("latest", ["mkdir", "ln -s nowhere", "mkfifo", "printf '\\377' >", "ln -s /dev/zero"])
def test_a_stranger_in_the_place_of_latest_ends_no_supervisor(latest: str, tmp_path: Path) -> None:
    script = f'mkdir -p "$RUN/checkpoints/step-00000005"; [ $starts = 2 ] && exit 0; {latest} "$RUN/checkpoints/latest"; exit 1'
    code, starts, lines = supervise(tmp_path, script)
    assert (code, starts) == (0, 2)
    assert lines == ["hyena-ds supervise: the run ended with exit code 1; starting again from step 5 in 1 s"]
